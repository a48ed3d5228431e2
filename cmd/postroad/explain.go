package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"postroad/cmd/internal/config"
	"postroad/ingress"
	"postroad/ingress/account"
	"postroad/ingress/rewrite"
	"postroad/queue"
	"postroad/queue/address"
)

type explainCmd struct {
	From    string `arg:"" help:"Sender as in MAIL FROM; '<>' for none."`
	Rcpt    string `arg:"" help:"Recipient as in RCPT TO."`
	Client  string `placeholder:"NAME" help:"Client that sends, an account or a trusted network (net:10.0.0.0/8): may it use this sender, and have its mail signed?"`
	Rules   string `placeholder:"FILE" help:"Try this file instead of ingress.rewrite.rules."`
	Aliases string `placeholder:"FILE" help:"Try this file instead of ingress.rewrite.aliases."`
	Hosts   bool   `help:"Ask the name service too: the MX hosts, their site, and what limits it, and what protects the connection (DANE, MTA-STS)."`
}

// explanation is what would become of a message with one recipient.
type explanation struct {
	Client     string               `json:"client,omitempty"`
	Sender     explainedAddress     `json:"sender"`
	Recipient  explainedAddress     `json:"recipient"`
	Recipients []explainedRecipient `json:"recipients"` // of the envelope
	From       explainedAddress     `json:"header_from"`
	To         explainedAddress     `json:"header_to"`
	Refused    *explainedRefusal    `json:"refused,omitempty"`
	Signing    *explainedSigning    `json:"signing,omitempty"` // not there for mail that is refused, or without a sender
	Doubts     rewrite.Faults       `json:"doubts,omitempty"`
	Unasked    string               `json:"unasked,omitempty"` // why limits of operators and suspensions are not known

	class string // of the client
}

// explainedAddress is what an address becomes, and why.
type explainedAddress struct {
	Given   string         `json:"given"`
	Becomes string         `json:"becomes,omitempty"` // empty for a recipient: see recipients
	Steps   []rewrite.Step `json:"steps,omitempty"`
}

type explainedRefusal struct {
	Command string `json:"command"`
	Reply   string `json:"reply"`
	Cause   string `json:"cause"`
}

// Run explains; a refusal makes it fail.
func (e explainCmd) Run(a *app) error {
	c, _, err := a.load()
	if err != nil {
		return err
	}
	rules, err := e.load(a, c)
	if err != nil {
		return err
	}
	routes, err := c.Delivery.LoadRoutes()
	if err != nil {
		return err
	}
	x := &explanation{Client: e.Client, Recipients: []explainedRecipient{}, Doubts: rules.Lint()}
	sender, err := e.follow(a, x, rules, c.Ingress.AllowedRecipients)
	if err != nil {
		return err
	}
	x.explainRoutes(routes, sender)
	if err := x.explainRetry(c, sender); err != nil {
		return err
	}
	if e.Hosts {
		if err := x.explainHosts(a, c); err != nil {
			return err
		}
	}
	if err := x.explainShaping(a, c); err != nil {
		return err
	}
	if err := e.signing(a, c, x); err != nil {
		return err
	}
	if a.flags.JSON {
		err = a.print(x)
	} else {
		err = x.show(a)
	}
	if err == nil && x.Refused != nil {
		if !a.flags.JSON {
			a.tell("postroad: refused at %s: %s\n", x.Refused.Command, x.Refused.Cause)
		}
		return errSaid
	}
	return err
}

// load reads the files that are configured, or those to be tried.
func (e explainCmd) load(a *app, c *config.Config) (*rewrite.Rules, error) {
	own, err := ownDomain(c)
	if err != nil {
		return nil, err
	}
	in := &c.Ingress.Rewrite
	files := rewrite.Files{Rules: in.Rules, Aliases: in.Aliases, Delimiter: in.RecipientDelimiter, OwnDomain: own}
	if e.Rules != "" {
		files.Rules = e.Rules
	}
	if e.Aliases != "" {
		files.Aliases = e.Aliases
	}
	rules, err := rewrite.Load(files)
	faults, ok := errors.AsType[rewrite.Faults](err)
	if !ok {
		return rules, err
	}
	if a.flags.JSON {
		if err := a.print(map[string]any{"faults": faults}); err != nil {
			return nil, err
		}
	} else {
		a.tell("%v\n", faults)
	}
	return nil, fmt.Errorf("%w: %w", errSaid, errUsage)
}

// ownDomain is the domain that the server would complete addresses with.
func ownDomain(c *config.Config) (string, error) {
	name := c.Domain
	if name == "" {
		name = c.Hostname
	}
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return "", fmt.Errorf("find the name of this machine: %w: set hostname", err)
		}
	}
	clean, err := address.Normalize(name)
	if err != nil {
		return "", usage("%q is no domain name: set hostname or domain", name)
	}
	return clean, nil
}

// follow goes the way of a message, up to its envelope, and gives the sender there.
func (e explainCmd) follow(a *app, x *explanation, rules *rewrite.Rules, allowList []string) (address.Path, error) {
	var steps rewrite.Trace
	given, err := rules.Complete(unbracketed(e.From), &steps)
	if err != nil {
		return address.Path{}, usage("sender: %w", err)
	}
	sender := rules.Sender(given, &steps)
	x.Sender = explainedAddress{e.From, sender.String(), steps.Steps}
	x.From = headerAddress(given, rules.HeaderSender)

	steps = rewrite.Trace{}
	to, err := rules.Complete(unbracketed(e.Rcpt), &steps)
	if err == nil && to.IsNull() {
		err = errors.New("a recipient is needed")
	}
	if err != nil {
		return address.Path{}, usage("recipient: %w", err)
	}
	x.To = headerAddress(to, rules.HeaderRecipient)
	recipients, err := rules.Expand(queue.Recipient{Path: to}, &steps)
	x.Recipient = explainedAddress{Given: e.Rcpt, Steps: steps.Steps}
	if refusal, ok := errors.AsType[*rewrite.Error](err); ok {
		x.Refused = &explainedRefusal{"RCPT", fmt.Sprintf("%d %d.%d.%d %s", refusal.Code, refusal.Enhanced[0], refusal.Enhanced[1],
			refusal.Enhanced[2], refusal.Text), refusal.Err.Error()}
	} else if err != nil {
		return address.Path{}, err
	}
	allowed := ingress.Policy{Recipients: allowList}
	for _, r := range recipients {
		x.Recipients = append(x.Recipients, explainedTarget(r))
		if !allowed.Allows(r.Path) {
			x.Refused = &explainedRefusal{"RCPT", "550 5.7.1", fmt.Sprintf("ingress.allowed_recipients does not name <%s>", r.Path)}
		}
	}
	return sender, e.checkClient(a, x, given)
}

// checkClient looks whether the client may use the sender; the server asks
// before it rewrites.
func (e explainCmd) checkClient(a *app, x *explanation, sender address.Path) error {
	if e.Client == "" {
		return nil
	}
	if isNetwork, err := trustedNetwork(e.Client); isNetwork {
		x.class = config.ClassNetwork
		return err
	}
	name, err := clientName(e.Client)
	if err != nil {
		return err
	}
	clients, err := a.clients()
	if err != nil {
		return err
	}
	client, err := clients.Client(a.ctx, name)
	switch {
	case errors.Is(err, account.ErrUnknown):
		return fmt.Errorf("client %s: %w", name, err)
	case err != nil:
		return err
	case client.Disabled:
		x.Refused = &explainedRefusal{"AUTH", "535 5.7.8", "client " + name + " is disabled"}
	case !client.MaySend(sender):
		x.Refused = &explainedRefusal{"MAIL", "550 5.7.1", fmt.Sprintf("client %s may not send as <%s>", name, sender)}
	default:
		x.class = client.Class
	}
	return nil
}

func unbracketed(s string) string {
	if inner, ok := strings.CutPrefix(s, "<"); ok && strings.HasSuffix(inner, ">") {
		return strings.TrimSuffix(inner, ">")
	}
	return s
}

// headerAddress explains an address that stands in the header as it does in the envelope.
func headerAddress(p address.Path, become func(address.Path, *rewrite.Trace) address.Path) explainedAddress {
	var steps rewrite.Trace
	became := become(p, &steps)
	return explainedAddress{p.String(), became.String(), steps.Steps}
}

// show prints an explanation for people.
func (x *explanation) show(a *app) error {
	t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	if x.Client != "" {
		line("client", "%s", clean(x.Client, 200))
	}
	line("sender", "<%s>", clean(unbracketed(x.Sender.Given), 320))
	showSteps(line, x.Sender.Steps)
	line("recipient", "<%s>", clean(unbracketed(x.Recipient.Given), 320))
	showSteps(line, x.Recipient.Steps)
	line("envelope", "MAIL FROM:<%s>", clean(x.Sender.Becomes, 320))
	for _, r := range x.Recipients {
		orcpt := ""
		if r.ORCPT != "" {
			orcpt = " ORCPT=" + clean(r.ORCPT, 600)
		}
		if r.Owner != "" && x.Sender.Becomes != "" {
			line("", "RCPT TO:<%s>, of a list: MAIL FROM:<%s>", clean(r.Address, 320), clean(r.Owner, 320))
		} else {
			line("", "RCPT TO:<%s>%s", clean(r.Address, 320), orcpt)
		}
		r.showWay(line)
	}
	if x.Unasked != "" {
		line("not known", "limits that operators set, and suspensions: %s", clean(x.Unasked, 500))
	}
	if x.Refused != nil {
		line("refused", "%s: %s", x.Refused.Command, clean(x.Refused.Reply, 500))
	}
	line("header", "To: %s", clean(x.To.Becomes, 320))
	showSteps(line, x.To.Steps)
	if x.From.Becomes != "" { // no null sender
		line("", "From: %s", clean(x.From.Becomes, 320))
		showSteps(line, x.From.Steps)
	}
	if x.Signing != nil {
		x.Signing.show(line)
	}
	for _, doubt := range x.Doubts {
		line("doubt", "%s", clean(doubt.Error(), 1000))
	}
	return t.Flush()
}

func showSteps(line func(name, format string, args ...any), steps []rewrite.Step) {
	for _, s := range steps {
		line("", "  %s", stepText(s))
	}
}

// stepText is one step in one line.
func stepText(s rewrite.Step) string {
	result := "→ " + clean(strings.Join(s.After, ", "), 1000)
	if len(s.After) == 1 && s.After[0] == s.Before {
		result = "stays " + clean(s.Before, 320)
	}
	if s.Error != "" {
		result = "✗ " + clean(s.Error, 500)
	}
	if s.Stage == rewrite.StageComplete {
		return result + "  (own domain, for clients that may leave it out)"
	}
	return fmt.Sprintf("%s  (%s:%d: %s)", result, s.File, s.Line, clean(s.Rule, 1200))
}
