package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"postroad/cmd/internal/check"
)

type checkCmd struct {
	SMTP   checkSMTPCmd   `cmd:"" name:"smtp" help:"Speak SMTP to a server as a client does: TLS, a login, a mail; print the transcript and what is wrong."`
	Relay  checkRelayCmd  `cmd:"" help:"Check that a server refuses mail to elsewhere from who has not logged in. Nothing is sent."`
	Policy checkPolicyCmd `cmd:"" help:"Look up the mail hosts of a domain and what they would be held to: DANE, MTA-STS. Nobody is connected to but for the policy."`
	TLS    checkTLSCmd    `cmd:"" name:"tls" help:"Look at a server's certificate and TLS versions."`
}

// checkFlags are common to all checks.
type checkFlags struct {
	Host       string        `required:"" placeholder:"HOST[:PORT]" help:"Server, by name or address."`
	CA         string        `name:"ca" type:"path" placeholder:"FILE" help:"Certificates of authorities to trust, in PEM. Default: those that the system trusts."`
	ExpectName string        `placeholder:"NAME" help:"Name that the certificate must be for. Default: the host."`
	MinLeft    time.Duration `placeholder:"AGE" help:"A certificate that ends sooner, such as 336h, is not good. Default: it must be good now."`
	Hello      string        `placeholder:"NAME" help:"Name to say in EHLO. Default: that of this machine."`
	Timeout    time.Duration `placeholder:"AGE" default:"10s" help:"Longest wait for each step. Default: 10s."`
	Quiet      bool          `short:"q" help:"Leave the transcript out."`
}

// options fills in what is common.
func (f checkFlags) options(a *app, mode check.TLSMode, port string) (check.Options, error) {
	o := check.Options{Server: withPort(f.Host, port), TLS: mode, Name: f.ExpectName, MinLeft: f.MinLeft, Hello: f.Hello, Timeout: f.Timeout}
	if f.Timeout <= 0 {
		return o, usage("--timeout must be longer than nothing")
	}
	if f.CA != "" {
		text, err := os.ReadFile(f.CA)
		if err != nil {
			return o, usage("--ca: %w", err)
		}
		o.CAs = x509.NewCertPool()
		if !o.CAs.AppendCertsFromPEM(text) {
			return o, usage("--ca: %s holds no certificate in PEM", f.CA)
		}
	}
	if !f.Quiet && !a.flags.JSON {
		o.Say = func(l check.Line) { a.say("%s\n", l) }
	}
	return o, nil
}

// withPort completes an address.
func withPort(host, port string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), port)
}

// tlsMode guesses what the port wants when nothing is said.
func tlsMode(mode, host string) check.TLSMode {
	if mode == "" && strings.HasSuffix(host, ":465") {
		return check.ImplicitTLS
	}
	return check.TLSMode(cmp.Or(mode, string(check.StartTLS)))
}

func submissionPort(mode check.TLSMode) string {
	if mode == check.ImplicitTLS {
		return "465"
	}
	return "587"
}

type checkSMTPCmd struct {
	checkFlags   `embed:""`
	TLS          string   `name:"tls" placeholder:"MODE" enum:",none,starttls,implicit" default:"" help:"none, starttls or implicit. Default: implicit for port 465, else starttls."`
	User         string   `placeholder:"NAME" help:"Log in. The password comes from --password-file, from $$POSTROAD_PASSWORD, or is asked for."`
	PasswordFile string   `placeholder:"FILE" help:"File with the password in its first line; - is standard input."`
	Mechanism    string   `placeholder:"WORD" help:"Log in by this mechanism and no other."`
	AuthInClear  bool     `help:"Show the password even without TLS, or to a server whose certificate is not good."`
	Cert         string   `type:"path" placeholder:"FILE" help:"Client certificate in PEM; without --user it is what logs in."`
	Key          string   `type:"path" placeholder:"FILE" help:"Its key. Default: it is in the same file."`
	From         string   `placeholder:"ADDRESS" help:"Sender; '<>' for none. Default: postroad-check at the name of this machine."`
	SendTo       []string `placeholder:"ADDRESS" help:"Send a mail to this address; again for more."`
	QuitAfter    string   `placeholder:"STAGE" help:"Stop after connect, first-helo, tls, helo, auth, mail, rcpt or data. Default: as far as the other flags ask for."`
	Expect       string   `placeholder:"CODE" help:"Be content with this reply code, such as 550 or 5xx, and with no other."`
}

// Run checks.
func (c checkSMTPCmd) Run(a *app) error {
	mode := tlsMode(c.TLS, c.Host)
	o, err := c.options(a, mode, submissionPort(mode))
	if err != nil {
		return err
	}
	o.User, o.Mechanism, o.AuthInClear, o.Sender, o.Recipients = c.User, c.Mechanism, c.AuthInClear, c.From, c.SendTo
	if c.Cert != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, cmp.Or(c.Key, c.Cert))
		if err != nil {
			return usage("--cert: %w", err)
		}
		o.Certificate = &pair
	}
	if c.QuitAfter != "" {
		if o.Stop, err = check.ParseStage(c.QuitAfter); err != nil {
			return usage("--quit-after %w", err)
		}
		if o.Stop >= check.Rcpt && len(c.SendTo) == 0 {
			return usage("--quit-after %s needs --send-to", c.QuitAfter)
		}
	}
	if c.Expect != "" {
		if o.Expect, err = check.ParseCodes(c.Expect); err != nil {
			return usage("--expect %w", err)
		}
	}
	if c.User != "" && (o.Stop == 0 || o.Stop >= check.Auth) && (o.Certificate == nil || c.PasswordFile != "") {
		if o.Password, err = givenPassword(a, c.User, c.PasswordFile); err != nil {
			return err
		}
	}
	return showReport(a, check.SMTP(a.ctx, o))
}

type checkRelayCmd struct {
	checkFlags `embed:""`
	TLS        string   `name:"tls" placeholder:"MODE" enum:"none,starttls,implicit" default:"none" help:"none, starttls or implicit. Default: none."`
	From       string   `placeholder:"ADDRESS" default:"<>" help:"Sender; '<>' for none, about which no server asks the DNS or SPF. Default: '<>'."`
	SendTo     []string `placeholder:"ADDRESS" default:"postmaster@iana.org" help:"Recipient that must be refused; again for more. Default: postmaster@iana.org, an address elsewhere that exists, so that nothing but relaying is refused."`
	Expect     string   `placeholder:"CODE" default:"5xx" help:"Reply code of the refusal of a recipient, such as 550 or 530,550; 530 also to MAIL. Default: 5xx."`
}

// Run checks. A refusal is what is good.
func (c checkRelayCmd) Run(a *app) error {
	o, err := c.options(a, check.TLSMode(c.TLS), "25")
	if err != nil {
		return err
	}
	o.Sender, o.Recipients = c.From, c.SendTo
	if o.Expect, err = check.ParseCodes(c.Expect); err != nil {
		return usage("--expect %w", err)
	}
	return showReport(a, check.Relay(a.ctx, o))
}

type checkTLSCmd struct {
	checkFlags `embed:""`
	StartTLS   bool `name:"starttls" help:"Begin in clear with STARTTLS. Default: for all ports but 465."`
	Implicit   bool `help:"TLS from the first octet. Default: for port 465."`
}

// Run checks.
func (c checkTLSCmd) Run(a *app) error {
	if c.StartTLS && c.Implicit {
		return usage("--starttls and --implicit exclude each other")
	}
	mode := tlsMode("", c.Host)
	switch {
	case c.StartTLS:
		mode = check.StartTLS
	case c.Implicit:
		mode = check.ImplicitTLS
	}
	o, err := c.options(a, mode, submissionPort(mode))
	if err != nil {
		return err
	}
	return showReport(a, check.TLS(a.ctx, o))
}

// showReport prints what a check has found; what is bad makes the command fail.
func showReport(a *app, r *check.Report) error {
	var err error
	if a.flags.JSON {
		err = a.print(r)
	} else {
		err = showVerdicts(a, r)
	}
	if err == nil && a.ctx.Err() != nil {
		err = errors.New("stopped")
	}
	if err == nil && !r.Good {
		err = errSaid
	}
	return err
}

func showVerdicts(a *app, r *check.Report) error {
	t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(t)
	if r.TLS != nil {
		for i, c := range r.TLS.Certificates {
			_, _ = fmt.Fprintf(t, "certificate %d\t%s\n", i+1, c.Subject)
			if len(c.Names) > 0 {
				_, _ = fmt.Fprintf(t, "\tfor %s\n", strings.Join(c.Names, ", "))
			}
			_, _ = fmt.Fprintf(t, "\tby %s, %s, %s\n", c.Issuer, c.Key, c.Signature)
			_, _ = fmt.Fprintf(t, "\tfrom %s until %s\n", c.NotBefore.Local().Format(time.DateTime), c.NotAfter.Local().Format(time.DateTime))
			_, _ = fmt.Fprintf(t, "\t%s\n", c.Fingerprint)
		}
		_, _ = fmt.Fprintln(t)
	}
	for _, v := range r.Verdicts {
		state := string(v.State)
		if v.State == check.Bad {
			state = "BAD"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\n", state, v.Step, v.Text)
		if v.Hint != "" {
			_, _ = fmt.Fprintf(t, "\t\t%s\n", v.Hint)
		}
	}
	return t.Flush()
}
