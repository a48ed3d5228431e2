package ingress

import (
	"strings"
	"time"

	"postroad/queue"
	"postroad/queue/address"
)

// Policy is what clients may do.
type Policy struct {
	// Classes by name. A client whose class is not here gets Default.
	Classes map[string]Class
	Default Class
	// Recipients are the only ones that mail may go to: addresses, @domain, or
	// .domain for all below it. Empty: anybody. It is for systems that are no
	// production.
	Recipients []string
}

// NetworkClass is the class of clients that are trusted for their address.
const NetworkClass = "network"

// Class is what the clients of one class may do.
type Class struct {
	PerClient queue.Limit // recipients of each client; zero: any number
	Together  queue.Limit // recipients of all its clients together; zero: any number
	// RejectOverLimit answers 550 to what is over a limit, and the client
	// bounces it. Otherwise 450 4.7.1, and the client keeps its mail.
	RejectOverLimit bool
	// Submits says that these clients hand in new mail, which is completed and
	// must be well formed (RFC 6409 §8). Others relay mail that is left alone.
	Submits bool
	// HideReceived takes the names and addresses of the client's side out of the
	// Received fields of mail that it submits, ours among them.
	HideReceived bool
	// MaxHold is how long these clients may have their mail held before it
	// goes out (RFC 4865); 0: not at all.
	MaxHold time.Duration
	// Idempotent finds a message that the same client has brought before: with
	// the same Message-ID, envelope and content. It is not queued again.
	Idempotent bool
}

// class is what holds for a client.
func (p *Policy) class(name string) *Class {
	if c, ok := p.Classes[name]; ok {
		return &c
	}
	return &p.Default
}

// maxHold is how long the client may have mail held. Before it has logged in,
// it is what some class may.
func (c *conn) maxHold() time.Duration {
	p := &c.srv.options.Policy
	if c.client != "" {
		return p.class(c.class).MaxHold
	}
	if c.listener.Auth == AuthNone {
		return 0
	}
	most := p.Default.MaxHold
	for _, class := range p.Classes {
		most = max(most, class.MaxHold)
	}
	return most
}

// Allows reports that mail may go to a recipient.
func (p *Policy) Allows(path address.Path) bool {
	if len(p.Recipients) == 0 {
		return true
	}
	whole := path.String()
	for _, entry := range p.Recipients {
		switch {
		case strings.HasPrefix(entry, "@"):
			if path.Domain == entry[1:] {
				return true
			}
		case strings.HasPrefix(entry, "."):
			if strings.HasSuffix(path.Domain, entry) {
				return true
			}
		case whole == entry:
			return true
		}
	}
	return false
}

// isRouted reports a local part that asks another host to relay on: the percent
// hack, a UUCP path, or an address within quotes (RFC 5321 App. F.2 and its
// kin). They are how open relays are found behind closed ones.
func isRouted(path address.Path) bool { return strings.ContainsAny(path.Local, "%!@") }

// label is a class as a label of metrics: its name if it is configured.
func (p *Policy) label(name string) string {
	if _, ok := p.Classes[name]; ok {
		return name
	}
	return "other"
}

// Rewriter changes addresses on their way in. Its methods do not block.
type Rewriter interface {
	// Sender is what becomes of a reverse-path.
	Sender(address.Path) address.Path
	// Expand is what becomes of a recipient. An error refuses it: a *rewrite.Error says how.
	Expand(queue.Recipient) ([]queue.Recipient, error)
	// Header is what becomes of the fields of a header; the same slice when nothing changes.
	Header([]byte) []byte
}

// unchanged is a Rewriter that leaves everything as it is.
type unchanged struct{}

func (unchanged) Sender(p address.Path) address.Path { return p }

func (unchanged) Expand(r queue.Recipient) ([]queue.Recipient, error) {
	return []queue.Recipient{r}, nil
}

func (unchanged) Header(fields []byte) []byte { return fields }
