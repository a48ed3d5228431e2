package config

import (
	"cmp"
	_ "embed" // the comments are the reference
	"regexp"
	"strconv"
	"time"

	"postroad/delivery/throttle"
)

//go:embed reactions.go
var reactionsSource string

// Reaction says what to do when hosts give a reply: the first that fits decides. Those that are built in come after these.
type Reaction struct {
	// Name is what events and operators see as the reason.
	Name string `yaml:"name"`

	// MX are names of MX hosts, or of domains that they lie below. Empty: every host.
	MX []string `yaml:"mx"`

	// Code is how the reply's code begins: 421, or 4 for every temporary one. Empty: any refusal.
	Code string `yaml:"code"`

	// Enhanced is how the enhanced status code begins: 4.7.28, or 4.7. with its last dot.
	Enhanced string `yaml:"enhanced"`

	// Phase is the step of the dialogue that is answered: greeting, ehlo, mail, rcpt, data or dot. Empty: any.
	Phase string `yaml:"phase"`

	// Text is a regular expression on the text of the reply, in either case. Empty: any.
	Text string `yaml:"text"`

	// Actions are what is done: slow (half of the connections and of the rate), suspend (nothing is sent by this path), switch_source (this source
	// is not used for the site; without sources it is suspended), defer (a final refusal is taken for a temporary one), bounce (a temporary
	// one for a final one), none (nothing, and no later reaction).
	Actions []ReactionAction `yaml:"actions"`

	// For is how long slow, suspend and switch_source last.
	For time.Duration `yaml:"for"`

	// After is how often the reply must come within ten minutes, to one process.
	After int `yaml:"after"`
}

// ReactionAction is what is done about a reply.
type ReactionAction string

func (ReactionAction) choices() []string { return words(throttle.Actions()) }

func defaultReaction() Reaction {
	return Reaction{MX: []string{}, Actions: []ReactionAction{}, For: 30 * time.Minute, After: 1}
}

func (r *Reaction) plain() throttle.Reaction {
	t := throttle.Reaction{Name: r.Name, Hosts: r.MX, Code: r.Code, Enhanced: r.Enhanced, Phase: r.Phase, Text: r.Text, For: r.For, After: r.After}
	for _, a := range r.Actions {
		t.Actions = append(t.Actions, throttle.Action(a))
	}
	return t
}

// ReactionRules are the reactions of the configuration.
func (d *Delivery) ReactionRules() []throttle.Reaction {
	var rules []throttle.Reaction
	for i := range d.Reactions {
		r := d.Reactions[i].plain()
		r.Name = cmp.Or(r.Name, "reactions["+strconv.Itoa(i)+"]")
		rules = append(rules, r)
	}
	return rules
}

func (d *Delivery) checkReactions(f *faults) {
	for i := range d.Reactions {
		setting, r := "delivery.reactions["+strconv.Itoa(i)+"]", d.Reactions[i].plain()
		if _, err := regexp.Compile(r.Text); err != nil {
			f.add(setting+".text", "%v", err)
			continue
		}
		if err := r.Check(); err != nil {
			f.add(setting, "%v", err)
		}
	}
}
