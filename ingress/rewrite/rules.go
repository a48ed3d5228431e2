package rewrite

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"postroad/queue"
	"postroad/queue/address"
)

// Files say where rules and aliases are written, and what is needed to read them.
type Files struct {
	Rules   string // YAML file of canonical rules and alias domains; empty: none
	Aliases string // file in the manner of /etc/aliases; empty: none

	// Delimiter stands between a local part and its tag: with "+", mail to
	// user+tag falls back to the alias of user. Several characters are several
	// delimiters. Empty: local parts have no tags.
	Delimiter string

	// OwnDomain completes addresses and alias targets without a domain, and is a
	// domain that aliases without one apply to. Empty: nothing is completed.
	OwnDomain string

	MaxRecipients int // of one alias, all that it leads to; default 1000
}

const defaultMaxRecipients = 1000

// Rules are all rules and aliases of two files.
type Rules struct {
	files     Files
	canonical []*rule
	tables    [scopes]table
	aliases   *aliases // nil: none, and no alias domains

	metrics *metrics
	log     *slog.Logger
}

// Bounds of the files.
const (
	maxRulesFile   = 1 << 20
	maxAliasesFile = 16 << 20
)

// Load reads and checks the files. What is wrong with them comes back as Faults.
func Load(files Files) (*Rules, error) {
	return compile(files, readTexts(files))
}

// texts are the contents of the files, or why they cannot be read.
type texts struct {
	rules, aliases       []byte
	rulesErr, aliasesErr error
}

func readTexts(files Files) texts {
	var t texts
	t.rules, t.rulesErr = readFile(files.Rules, maxRulesFile)
	t.aliases, t.aliasesErr = readFile(files.Aliases, maxAliasesFile)
	return t
}

func readFile(name string, most int64) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	f, err := os.Open(name)
	if err != nil {
		if cause, ok := errors.AsType[*fs.PathError](err); ok {
			err = cause.Err
		}
		return nil, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(text)) > most {
		return nil, fmt.Errorf("larger than %d MiB: is it the right file?", most>>20)
	}
	return text, nil
}

// compile makes Rules of the contents, or Faults.
func compile(files Files, t texts) (*Rules, error) {
	if files.MaxRecipients <= 0 {
		files.MaxRecipients = defaultMaxRecipients
	}
	if files.OwnDomain != "" {
		own, err := address.Normalize(files.OwnDomain)
		if err != nil {
			return nil, fmt.Errorf("own domain: %w", err)
		}
		files.OwnDomain = own
	}
	r := &Rules{files: files, metrics: newMetrics(), log: slog.New(slog.DiscardHandler)}

	ruleReader := reader{file: files.Rules}
	var domains []aliasDomain
	if t.rulesErr != nil {
		ruleReader.fault(0, "%v", t.rulesErr)
	} else {
		r.canonical, domains = ruleReader.rules(t.rules)
	}
	aliasReader := reader{file: files.Aliases}
	var entries []*entry
	if t.aliasesErr != nil {
		aliasReader.fault(0, "%v", t.aliasesErr)
	} else {
		entries = aliasReader.entries(t.aliases, files.OwnDomain)
	}
	if len(entries)+len(domains) > 0 {
		r.aliases = newAliases(files, entries, domains)
		if len(aliasReader.faults) == 0 {
			r.aliases.check(&aliasReader)
		}
	}
	if faults := append(ruleReader.faults.sorted(), aliasReader.faults.sorted()...); len(faults) > 0 {
		return nil, faults
	}
	for i, rule := range r.canonical {
		for s := range scopes {
			if rule.scopes&(1<<s) != 0 {
				r.tables[s].add(i, rule)
			}
		}
	}
	return r, nil
}

// Sender is what becomes of a reverse-path. The null path stays.
func (r *Rules) Sender(p address.Path, t *Trace) address.Path {
	if r == nil {
		return p
	}
	return r.rewrite(envelopeSenders, p, t)
}

// Expand is what becomes of a recipient: usually one, several for an alias. An
// error is an *Error and refuses this recipient alone.
func (r *Rules) Expand(in queue.Recipient, t *Trace) ([]queue.Recipient, error) {
	if r == nil {
		return []queue.Recipient{in}, nil
	}
	if in.Path.Domain == "" && !in.Path.IsNull() && r.files.OwnDomain != "" {
		// Only postmaster comes without a domain (RFC 5321 §4.5.1).
		in.Path = r.completed(in.Path, t)
	}
	path := r.rewrite(envelopeRecipients, in.Path, t)
	if r.aliases == nil {
		return []queue.Recipient{become(in, path)}, nil
	}
	leaves, err := r.aliases.expand(path, t)
	if err != nil {
		return nil, err
	}
	return redistribute(in, leaves), nil
}

// completed adds the own domain to a path without one.
func (r *Rules) completed(p address.Path, t *Trace) address.Path {
	whole := address.Path{Local: p.Local, Domain: r.files.OwnDomain}
	if t != nil {
		t.add(Step{Stage: StageComplete, Before: p.String(), After: []string{whole.String()}})
	}
	return whole
}

// Complete reads what stood between the angle brackets of MAIL or RCPT, where
// it may be without a domain: that becomes the own domain (RFC 6409 §6.2).
func (r *Rules) Complete(text string, t *Trace) (address.Path, error) {
	p, err := address.ParseForward(text)
	if !errors.Is(err, address.ErrNoDomain) || r == nil || r.files.OwnDomain == "" {
		return p, err
	}
	if p, err = address.ParseForward(text + "@" + r.files.OwnDomain); err != nil {
		return p, err
	}
	if t != nil {
		t.add(Step{Stage: StageComplete, Before: text, After: []string{p.String()}})
	}
	return p, nil
}

// HeaderSender is what becomes of an address in From and its kin.
func (r *Rules) HeaderSender(p address.Path, t *Trace) address.Path {
	if r == nil {
		return p
	}
	return r.rewrite(headerSenders, p, t)
}

// HeaderRecipient is what becomes of an address in To and its kin.
func (r *Rules) HeaderRecipient(p address.Path, t *Trace) address.Path {
	if r == nil {
		return p
	}
	return r.rewrite(headerRecipients, p, t)
}
