package main

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"postroad/cmd/internal/config"
)

type importCmd struct {
	EximRelayEnv importEximCmd `cmd:"" name:"exim-relay-env" help:"Print a configuration that does what the settings of an Exim relay in a container do, and say what has no equal here."`
}

type importEximCmd struct {
	File string `arg:"" optional:"" help:"File of lines NAME=VALUE, as containers are given it; - is standard input. Default: the environment."`
}

// eximSettings are the settings that are understood.
var eximSettings = []string{"HOSTNAME", "SMARTHOST", "SMTP_USERNAME", "SMTP_PASSWORD", "LOCAL_DOMAINS", "RELAY_FROM_HOSTS", "RELAY_TO_DOMAINS", "RELAY_TO_USERS",
	"DISABLE_SENDER_VERIFICATION"}

// Run prints the configuration. Passwords are not in it.
func (c importEximCmd) Run(a *app) error {
	env, err := c.read()
	if err != nil {
		return err
	}
	text := eximConfig(env)
	if _, err := config.Parse("what would be printed", []byte(text)); err != nil {
		return err // a host name or an address in the settings is none
	}
	a.say("%s", text)
	return nil
}

func (c importEximCmd) read() (map[string]string, error) {
	env := make(map[string]string)
	if c.File == "" {
		for _, name := range eximSettings {
			env[name] = os.Getenv(name)
		}
		return env, nil
	}
	in := io.Reader(os.Stdin)
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return nil, usage("read settings: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		name, value, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(lines.Text()), "export "), "=")
		env[name] = strings.Trim(value, `"'`)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	return env, nil
}

// eximList takes a list of Exim apart: its items are separated by colons, or by the character behind <, and a separator that is doubled belongs to its item.
func eximList(text string) []string {
	sep := ":"
	if rest, ok := strings.CutPrefix(strings.TrimSpace(text), "<"); ok && rest != "" {
		sep, text = rest[:1], rest[1:]
	}
	var items []string
	for item := range strings.SplitSeq(strings.ReplaceAll(text, sep+sep, "\x00"), sep) {
		if item = strings.TrimSpace(strings.ReplaceAll(item, "\x00", sep)); item != "" {
			items = append(items, item)
		}
	}
	return items
}

// eximConfig is the configuration as YAML.
func eximConfig(env map[string]string) string {
	var b, not strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	skip := func(name, item, why string) { fmt.Fprintf(&not, "# Not taken over: %s %q: %s\n", name, item, why) }
	host := env["HOSTNAME"]
	if host != "" {
		line("hostname: %q", host)
	}
	line("ingress:")
	line("  listeners:")
	line("    - address: \":8025\"")
	line("      trusted_networks: [%s]", strings.Join(eximNetworks(env["RELAY_FROM_HOSTS"], skip), ", "))
	if allowed := eximRecipients(env, skip); len(allowed) > 0 {
		line("  allowed_recipients: [%s]", strings.Join(allowed, ", "))
	}
	line("delivery:")
	line("  routes:")
	for _, domain := range eximList(env["LOCAL_DOMAINS"]) {
		if domain == "@" {
			domain = host
		}
		if strings.ContainsAny(domain, "*@/") || domain == "" {
			skip("LOCAL_DOMAINS", domain, "is no domain")
			continue
		}
		line("    - {domains: [%q], via: \"error:550 5.1.1 local delivery is disabled\"}", domain)
	}
	smartHost, port, _ := strings.Cut(env["SMARTHOST"], "::")
	if port == "" {
		port = "25"
	}
	switch {
	case smartHost == "":
		line("    - {name: rest, domains: [\"*\"], tls: encrypt}")
	case env["SMTP_USERNAME"] == "":
		line("    - {name: smarthost, domains: [\"*\"], via: %q, tls: encrypt}", "smtp:["+smartHost+"]:"+port)
	default:
		line("    - {name: smarthost, domains: [\"*\"], via: %q, tls: verify, auth: smarthost}", "smtp:["+smartHost+"]:"+port)
		line("# The login is the secret smarthosts/smarthost with username %q and the password, which is not printed here: see docs/delivery.md.", env["SMTP_USERNAME"])
	}
	if env["DISABLE_SENDER_VERIFICATION"] == "" {
		line("# Senders whose domain takes no mail are refused with ingress.refuse_null_mx: true; there is no other look at them.")
	}
	return "# Made from the settings of an Exim relay. Look through it, then: postroad config check\n" + b.String() + not.String()
}

// eximNetworks are the networks that may relay, quoted.
func eximNetworks(text string, skip func(name, item, why string)) []string {
	list := []string{`"127.0.0.0/8"`, `"::1/128"`}
	for _, item := range eximList(text) {
		prefix, err := netip.ParsePrefix(item)
		if addr, is := netip.ParseAddr(item); is == nil {
			prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil {
			skip("RELAY_FROM_HOSTS", item, "is no network: clients are known by their addresses, or log in")
			continue
		}
		list = append(list, fmt.Sprintf("%q", prefix.Masked()))
	}
	return list
}

// eximRecipients are the recipients that mail is taken for, quoted; none: everybody.
func eximRecipients(env map[string]string, skip func(name, item, why string)) []string {
	var list []string
	for _, item := range eximList(env["RELAY_TO_DOMAINS"]) {
		below, isBelow := strings.CutPrefix(item, "*.")
		switch {
		case item == "*":
			return nil
		case isBelow && !strings.ContainsAny(below, "*@/"):
			list = append(list, fmt.Sprintf("%q", "."+below))
		case strings.ContainsAny(item, "*@/;"):
			skip("RELAY_TO_DOMAINS", item, "is no domain")
		default:
			list = append(list, fmt.Sprintf("%q", "@"+item))
		}
	}
	for _, item := range eximList(env["RELAY_TO_USERS"]) {
		list = append(list, fmt.Sprintf("%q", item))
	}
	return list
}
