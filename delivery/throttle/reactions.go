package throttle

import (
	_ "embed"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

//go:embed reactions.txt
var builtIn string

// Action is what is done about a reply.
type Action string

// The actions.
const (
	ActionSlow    Action = "slow"          // half of the connections and of the rate
	ActionSuspend Action = "suspend"       // nothing is sent by the path
	ActionSwitch  Action = "switch_source" // the source is not used for the site
	ActionDefer   Action = "defer"         // a final refusal is taken for a temporary one
	ActionBounce  Action = "bounce"        // a temporary refusal is taken for a final one
	ActionNone    Action = "none"          // nothing, and no later rule
)

// Actions are all of them.
func Actions() []Action {
	return []Action{ActionSlow, ActionSuspend, ActionSwitch, ActionDefer, ActionBounce, ActionNone}
}

// Reaction says what to do when a host gives a reply. What is empty matches everything.
type Reaction struct {
	Name     string
	Hosts    []string // MX hosts, or domains that they lie below
	Code     string   // how it begins: 421, 4
	Enhanced string   // how it begins: 4.7.28, 4.7.
	Phase    string   // of the dialogue: greeting, mail, rcpt, dot …
	Text     string   // regular expression, in either case
	Actions  []Action
	For      time.Duration // of slow, suspend and switch_source
	After    int           // how often within ten minutes, in this process; 0 is 1

	text *regexp.Regexp
}

const (
	maxReaction = 7 * 24 * time.Hour
	countedFor  = 10 * time.Minute
	maxCounts   = 20000
	maxReply    = 2000 // octets of a reply that are looked at
)

// Check finds what is wrong with a reaction.
func (r *Reaction) Check() error {
	if len(r.Actions) == 0 {
		return errors.New("has no action")
	}
	lasts := false
	for _, a := range r.Actions {
		if !slices.Contains(Actions(), a) {
			return fmt.Errorf("%q is none of %v", a, Actions())
		}
		lasts = lasts || a == ActionSlow || a == ActionSuspend || a == ActionSwitch
	}
	switch {
	case slices.Contains(r.Actions, ActionDefer) && slices.Contains(r.Actions, ActionBounce):
		return errors.New("a reply is taken either for a temporary or for a final one")
	case lasts && (r.For < time.Second || r.For > maxReaction):
		return fmt.Errorf("a time of %s is out of range: 1s to %s", r.For, maxReaction)
	case r.After < 0:
		return errors.New("after is less than 0")
	case strings.Trim(r.Code, "0123456789") != "" || strings.Trim(r.Enhanced, "0123456789.") != "":
		return fmt.Errorf("%q and %q are not how a code begins", r.Code, r.Enhanced)
	}
	if _, err := regexp.Compile(r.Text); err != nil {
		return fmt.Errorf("text: %w", err)
	}
	return nil
}

// Said is what a host said.
type Said struct {
	Hosts    []string // of the site
	Code     int
	Enhanced string
	Phase    string
	Text     string
}

// Reactions are rules in their order.
type Reactions struct {
	rules []Reaction

	mu     sync.Mutex
	counts map[countKey]count
}

type countKey struct{ rule, path string }

type count struct {
	since time.Time
	n     int
}

// NewReactions checks rules of the configuration and puts them before those that are built in.
func NewReactions(first ...Reaction) (*Reactions, error) {
	rs := &Reactions{counts: make(map[countKey]count)}
	rules, err := parseReactions(builtIn)
	if err != nil {
		return nil, err
	}
	for _, r := range append(slices.Clone(first), rules...) {
		if err := r.Check(); err != nil {
			return nil, fmt.Errorf("reaction %s: %w", r.Name, err)
		}
		r.text = regexp.MustCompile("(?is)" + r.Text)
		rs.rules = append(rs.rules, r)
	}
	return rs, nil
}

// parseReactions reads a table; see reactions.txt.
func parseReactions(table string) ([]Reaction, error) {
	var rules []Reaction
	n := 0
	for line := range strings.Lines(table) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		var field [7]string
		for i := range field {
			line = strings.TrimSpace(line)
			end := strings.IndexAny(line, " \t")
			if end < 0 {
				return nil, fmt.Errorf("reactions, line %d: has %d of 8 fields", n, i+1)
			}
			if field[i] = line[:end]; field[i] == "-" {
				field[i] = ""
			}
			line = line[end:]
		}
		r := Reaction{Name: field[0], Code: field[2], Enhanced: field[3], Text: strings.TrimSpace(line)}
		if field[1] != "" {
			r.Hosts = strings.Split(field[1], ",")
		}
		for a := range strings.SplitSeq(field[4], "+") {
			r.Actions = append(r.Actions, Action(a))
		}
		var err error
		if field[5] != "" {
			if r.For, err = time.ParseDuration(field[5]); err != nil {
				return nil, fmt.Errorf("reactions, line %d: %w", n, err)
			}
		}
		if r.After, err = strconv.Atoi(field[6]); err != nil {
			return nil, fmt.Errorf("reactions, line %d: %w", n, err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func (r *Reaction) matches(s *Said) bool {
	return strings.HasPrefix(strconv.Itoa(s.Code), r.Code) && strings.HasPrefix(s.Enhanced, r.Enhanced) &&
		(r.Phase == "" || r.Phase == s.Phase) &&
		(len(r.Hosts) == 0 || slices.ContainsFunc(s.Hosts, func(host string) bool {
			return slices.ContainsFunc(r.Hosts, func(name string) bool { return isBelow(host, name) })
		})) &&
		r.text.MatchString(s.Text[:min(len(s.Text), maxReply)])
}

// Find is the reaction to what was said on a path; nil: none. One that is wanted after several times is given with the last of them, and then
// the count begins anew.
func (rs *Reactions) Find(path string, s Said) *Reaction {
	i := slices.IndexFunc(rs.rules, func(r Reaction) bool { return r.matches(&s) })
	if i < 0 || rs.rules[i].Actions[0] == ActionNone {
		return nil
	}
	r := &rs.rules[i]
	if r.After <= 1 {
		return r
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	now, key := time.Now(), countKey{r.Name, path}
	c := rs.counts[key]
	if now.Sub(c.since) > countedFor {
		c = count{since: now}
	}
	if c.n++; c.n >= r.After {
		delete(rs.counts, key)
		return r
	}
	if len(rs.counts) >= maxCounts {
		rs.forget(now)
	}
	rs.counts[key] = c
	return nil
}

// forget drops counts that are old, or all when that is not enough. The caller holds the lock.
func (rs *Reactions) forget(now time.Time) {
	for key, c := range rs.counts {
		if now.Sub(c.since) > countedFor {
			delete(rs.counts, key)
		}
	}
	if len(rs.counts) >= maxCounts {
		clear(rs.counts)
	}
}

// Has reports whether an action is among those of a reaction.
func (r *Reaction) Has(a Action) bool { return slices.Contains(r.Actions, a) }
