// Postroad is an outbound mail relay whose queue belongs to no machine. This is its one binary: the server with any set of
// roles, the demo, and the commands of operators, who reach a running server through its admin socket.
//
// Exit statuses: 0 done; 1 not done, the reason is on standard error; 2 the command line or the configuration is wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/ops"
)

// Exit statuses.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

type cli struct {
	File       string `name:"config" short:"c" placeholder:"FILE" env:"POSTROAD_CONFIG" help:"Configuration file. Default: ${default_file} if it exists, else every setting's default."`
	Socket     string `placeholder:"PATH" env:"POSTROAD_SOCKET" help:"Admin socket of the running server. Default: the configuration's."`
	VaultToken string `placeholder:"FILE" type:"path" env:"POSTROAD_VAULT_TOKEN_FILE" help:"Where secrets are in Vault: file with the token of whoever gives the command. Default: ~/.vault-token."`
	JSON       bool   `name:"json" help:"Print JSON, one object a line where there are many."`

	Serve    serveCmd    `cmd:"" help:"Run the server with its roles."`
	Demo     demoCmd     `cmd:"" help:"Run everything in one process, send a signed mail through and show its way."`
	Config   configCmd   `cmd:"" help:"Check, show or describe the configuration."`
	Status   statusCmd   `cmd:"" help:"Show the whole cluster, and first of all what needs attention. Exit status 0: all is well, 1: something needs attention."`
	Queue    queueCmd    `cmd:"" help:"Look at the queue of the running server and move what waits in it."`
	Limit    limitCmd    `cmd:"" help:"Look at the limits of sites, and change them while everything runs."`
	Site     siteCmd     `cmd:"" help:"Look at sites that get no mail or less than usual, suspend and resume them."`
	Suppress suppressCmd `cmd:"" help:"Look after the list of those who are not to be written to."`
	Client   clientCmd   `cmd:"" help:"Look after the accounts of clients that log in."`
	Explain  explainCmd  `cmd:"" help:"Say what rewriting and routing would make of a sender and a recipient, and why."`
	Secrets  secretsCmd  `cmd:"" help:"List all secrets, describe them, replace the authority, certificates and passwords."`
	DKIM     dkimCmd     `cmd:"" name:"dkim" help:"Look after DKIM keys, from their making to their end."`
	Source   sourceCmd   `cmd:"" help:"Look at where outgoing connections come from, and check it as receivers do."`
	Trace    traceCmd    `cmd:"" help:"Tell the story of a message, or of all that match."`
	Tap      tapCmd      `cmd:"" help:"Show dialogues with hosts while they go on, from the whole cluster, without credentials and content."`
	Check    checkCmd    `cmd:"" help:"Check an SMTP server from outside: a login, a mail, a refusal, a certificate."`
	Import   importCmd   `cmd:"" help:"Turn the settings of another relay into a configuration."`
	TLS      tlsCmd      `cmd:"" name:"tls" help:"Look at the TLS settings of outgoing connections."`
	SASL     saslCmd     `cmd:"" name:"sasl" help:"Code passwords for sessions by hand."`
	Bench    benchCmd    `cmd:"" help:"Put load on an SMTP server and report what it bore."`
	Version  versionCmd  `cmd:"" help:"Print the version."`
}

// app is what every command gets.
type app struct {
	ctx      context.Context
	out, err io.Writer
	flags    *cli
	command  string // name of the innermost command
	ends     []func() error
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole program.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var flags cli
	exited := -1 // --help was asked for
	parser, err := kong.New(&flags,
		kong.Name("postroad"),
		kong.Description("An outbound mail relay whose queue belongs to no machine.\n\nExit status: 0 done, 1 not done, 2 wrong command line or configuration."),
		kong.Vars{"default_file": defaultFile},
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exited = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
	)
	if err != nil {
		panic(err) // the struct above is wrong
	}
	command, err := parser.Parse(args)
	if exited >= 0 {
		return exited
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "postroad: %v (postroad --help shows what there is)\n", err)
		return exitUsage
	}
	a := &app{ctx: ctx, out: stdout, err: stderr, flags: &flags, command: command.Selected().Name}
	err = command.Run(a)
	a.end()
	if err == nil {
		return exitDone
	}
	if faults, ok := errors.AsType[config.Errors](err); ok {
		_, _ = fmt.Fprintln(stderr, faults.Error())
		return exitUsage
	}
	if !errors.Is(err, errSaid) {
		_, _ = fmt.Fprintf(stderr, "postroad: %v\n", err)
	}
	if errors.Is(err, errUsage) || errors.Is(err, ops.ErrRefused) {
		return exitUsage
	}
	return exitFailed
}

var (
	// errUsage says that the command line is wrong.
	errUsage = errors.New("wrong use")
	// errSaid says that the reason is printed already.
	errSaid = errors.New("said already")
)

// usage wraps what is wrong with a command line.
func usage(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

type usageError struct{ error }

func (e *usageError) Unwrap() []error { return []error{e.error, errUsage} }
