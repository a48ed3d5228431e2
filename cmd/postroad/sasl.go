package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

type saslCmd struct {
	Encode saslEncodeCmd `cmd:"" help:"Print what is to be typed after AUTH in a session by hand. It is as secret as the password."`
}

type saslEncodeCmd struct {
	User         string `required:"" placeholder:"NAME" help:"Name of the client."`
	PasswordFile string `placeholder:"FILE" help:"File with the password in its first line; - is standard input. Default: $$POSTROAD_PASSWORD, or it is asked for."`
	Mechanism    string `enum:"plain,login" default:"plain" help:"plain prints one line, login two. Default: plain."`
}

// Run prints.
func (c saslEncodeCmd) Run(a *app) error {
	password, err := givenPassword(a, c.User, c.PasswordFile)
	if err != nil {
		return err
	}
	lines := []string{"\x00" + c.User + "\x00" + password}
	if c.Mechanism == "login" {
		lines = []string{c.User, password}
	}
	for i, text := range lines {
		lines[i] = base64.StdEncoding.EncodeToString([]byte(text))
	}
	if a.flags.JSON {
		return a.print(map[string]any{"mechanism": strings.ToUpper(c.Mechanism), "responses": lines})
	}
	a.say("%s\n", strings.Join(lines, "\n"))
	return nil
}

// passwordVariable is where a password may be given. An argument of a command can be read by everybody on the machine.
const passwordVariable = "POSTROAD_PASSWORD"

// givenPassword finds the password to log in with: in a file, in the environment, or by asking.
func givenPassword(a *app, user, file string) (string, error) {
	text := os.Getenv(passwordVariable)
	switch {
	case file == "-":
		line, err := firstLine(os.Stdin)
		if err != nil {
			return "", err
		}
		text = line
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return "", usage("--password-file: %w", err)
		}
		defer f.Close()
		if text, err = firstLine(f); err != nil {
			return "", err
		}
	case text == "":
		a.tell("Password of %s: ", user)
		line, err := askHidden(a.ctx, os.Stdin)
		a.tell("\n")
		if errors.Is(err, errNoTerminal) {
			return "", usage("there is nobody to ask for the password of %s: give --password-file or set %s", user, passwordVariable)
		}
		if err != nil {
			return "", fmt.Errorf("ask for the password: %w", err)
		}
		text = line
	}
	if text == "" {
		return "", usage("the password of %s is empty", user)
	}
	return text, nil
}

// firstLine reads octet by octet, so that nothing behind the line is taken.
func firstLine(in io.Reader) (string, error) {
	var b strings.Builder
	one := make([]byte, 1)
	for b.Len() < maxPasswordLine {
		n, err := in.Read(one)
		if n == 1 && one[0] == '\n' || errors.Is(err, io.EOF) {
			return strings.TrimSuffix(b.String(), "\r"), nil
		}
		if err != nil {
			return "", fmt.Errorf("read the password: %w", err)
		}
		b.Write(one[:n])
	}
	return "", usage("the password is longer than %d octets", maxPasswordLine)
}

// errNoTerminal says that a password cannot be asked for.
var errNoTerminal = errors.New("standard input is no terminal")
