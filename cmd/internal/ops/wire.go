package ops

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"postroad/queue"
	"postroad/queue/address"
)

// Selection names the jobs that a command is for, as people give it. All that is set must match.
type Selection struct {
	ID        string        `json:"id,omitempty"`
	Domain    string        `json:"domain,omitempty"`
	Sender    string        `json:"sender,omitempty"` // <> for notifications
	Client    string        `json:"client,omitempty"`
	OlderThan time.Duration `json:"older_than,omitempty"`
	HeldFor   time.Duration `json:"held_for,omitempty"`  // is held, and has been for so long
	SignedBy  string        `json:"signed_by,omitempty"` // name of a DKIM record: selector._domainkey.domain; *: any
	Author    string        `json:"author,omitempty"`    // domain of the author (From:), or .domain for every domain below it
	Unsigned  bool          `json:"unsigned,omitempty"`  // waits for its signature, and for nothing else
	All       bool          `json:"all,omitempty"`       // everything; needed when nothing else is set
}

// errNothingSelected keeps a slip of the hand from moving the whole queue.
var errNothingSelected = errors.New("nothing is selected: give an id, a domain, a sender, an author, a client, a key or an age, or say that all is meant")

// errNullSender says that <> cannot be selected on its own.
var errNullSender = errors.New("the null sender <> cannot be selected: select by id or domain")

// resolve checks a selection from outside.
func (s Selection) resolve() (queue.Selection, error) {
	sel := queue.Selection{Client: s.Client, OlderThan: s.OlderThan, HeldFor: s.HeldFor, Unsigned: s.Unsigned}
	var err error
	if s.ID != "" {
		if sel.ID, err = queue.ParseID(s.ID); err != nil {
			return sel, err
		}
	}
	if s.Domain != "" {
		if sel.Domain, err = address.Normalize(s.Domain); err != nil {
			return sel, fmt.Errorf("domain: %w", err)
		}
	}
	if s.Author != "" {
		domain, below := strings.CutPrefix(s.Author, ".")
		if sel.Author, err = address.Normalize(domain); err != nil {
			return sel, fmt.Errorf("author: %w", err)
		}
		if below {
			sel.Author = "." + sel.Author
		}
	}
	if sel.Sender, err = parsePath(s.Sender); err != nil {
		return sel, fmt.Errorf("sender: %w", err)
	}
	if s.OlderThan < 0 || s.HeldFor < 0 {
		return sel, errors.New("an age cannot be negative")
	}
	switch s.SignedBy {
	case "", "*":
		sel.SignedBy = s.SignedBy
	default:
		selector, domain, ok := strings.Cut(strings.ToLower(s.SignedBy), "._domainkey.")
		if !ok || selector == "" || domain == "" {
			return sel, fmt.Errorf("signed by: %q is no name of a DKIM record: want selector._domainkey.domain, or * for any", s.SignedBy)
		}
		sel.SignedBy = selector + "._domainkey." + strings.TrimSuffix(domain, ".")
	}
	if sel == (queue.Selection{}) && !s.All {
		return sel, errNothingSelected
	}
	if sel != (queue.Selection{}) && s.All {
		return sel, errors.New("either all or a selection, not both")
	}
	return sel, nil
}

// parsePath brings an address into the form in which the queue keeps it.
func parsePath(s string) (string, error) {
	switch s {
	case "":
		return "", nil
	case "<>":
		return "", errNullSender
	}
	p, err := address.Parse(s)
	if err != nil {
		return "", err
	}
	return p.String(), nil
}

func (s Selection) query() url.Values {
	v := url.Values{}
	set(v, "id", s.ID)
	set(v, "domain", s.Domain)
	set(v, "sender", s.Sender)
	set(v, "client", s.Client)
	set(v, "signed_by", s.SignedBy)
	set(v, "author", s.Author)
	if s.Unsigned {
		v.Set("unsigned", "true")
	}
	if s.OlderThan > 0 {
		v.Set("older_than", s.OlderThan.String())
	}
	if s.HeldFor > 0 {
		v.Set("held_for", s.HeldFor.String())
	}
	return v
}

func selectionOf(v url.Values) (Selection, error) {
	s := Selection{ID: v.Get("id"), Domain: v.Get("domain"), Sender: v.Get("sender"), Client: v.Get("client"),
		SignedBy: v.Get("signed_by"), Author: v.Get("author"), Unsigned: v.Get("unsigned") == "true", All: v.Get("all") == "true"}
	for name, into := range map[string]*time.Duration{"older_than": &s.OlderThan, "held_for": &s.HeldFor} {
		if age := v.Get(name); age != "" {
			d, err := time.ParseDuration(age)
			if err != nil {
				return s, fmt.Errorf("%s: %w", name, err)
			}
			*into = d
		}
	}
	return s, nil
}

// TraceFilter selects events, as people give it.
type TraceFilter struct {
	ID, Sender, Recipient, MessageID, Client string
	Since                                    time.Time // zero: the time of the id, or a day ago
}

// defaultSince bounds the search when nothing else does.
const defaultSince = 24 * time.Hour

func (f TraceFilter) resolve() (queue.TraceFilter, error) {
	out := queue.TraceFilter{MessageID: f.MessageID, Client: f.Client, Since: f.Since}
	var err error
	if f.ID != "" {
		if out.ID, err = queue.ParseID(f.ID); err != nil {
			return out, err
		}
	}
	if out.Sender, err = parsePath(f.Sender); err != nil {
		return out, fmt.Errorf("sender: %w", err)
	}
	if out.Recipient, err = parsePath(f.Recipient); err != nil {
		return out, fmt.Errorf("recipient: %w", err)
	}
	if out.ID == "" && out.Since.IsZero() {
		out.Since = time.Now().Add(-defaultSince)
	}
	return out, nil
}

func (f TraceFilter) query() url.Values {
	v := url.Values{}
	set(v, "id", f.ID)
	set(v, "sender", f.Sender)
	set(v, "recipient", f.Recipient)
	set(v, "message_id", f.MessageID)
	set(v, "client", f.Client)
	if !f.Since.IsZero() {
		v.Set("since", f.Since.Format(time.RFC3339Nano))
	}
	return v
}

func traceFilterOf(v url.Values) (TraceFilter, error) {
	f := TraceFilter{
		ID: v.Get("id"), Sender: v.Get("sender"), Recipient: v.Get("recipient"), MessageID: v.Get("message_id"), Client: v.Get("client"),
	}
	if since := v.Get("since"); since != "" {
		t, err := time.Parse(time.RFC3339Nano, since)
		if err != nil {
			return f, fmt.Errorf("since: %w", err)
		}
		f.Since = t
	}
	return f, nil
}

func set(v url.Values, key, value string) {
	if value != "" {
		v.Set(key, value)
	}
}

func limitOf(v url.Values) (int, error) {
	text := v.Get("limit")
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("limit: %q is no number of entries", text)
	}
	return n, nil
}

// Action is a command over a selection.
type Action string

// The actions.
const (
	ActionRetry   Action = "retry"
	ActionCancel  Action = "cancel"
	ActionHold    Action = "hold"
	ActionRelease Action = "release"
	ActionResign  Action = "resign"
	ActionReturn  Action = "return"
)

// Order asks for an action.
type Order struct {
	Selection Selection `json:"selection"`
	Why       string    `json:"why,omitempty"`     // of a hold or a return
	DryRun    bool      `json:"dry_run,omitempty"` // only count
}

// Outcome is what an order came to.
type Outcome struct {
	Count  int  `json:"count"` // jobs that moved, or would
	DryRun bool `json:"dry_run,omitempty"`
}

// failure is the body of every answer that is no success, and the last line of a stream that broke off.
type failure struct {
	Error string `json:"error"`
}
