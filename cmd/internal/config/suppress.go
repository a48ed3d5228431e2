package config

import (
	"strconv"
	"time"

	"postroad/delivery/suppress"
)

// Suppress is what puts recipients on the list of those who are not to be written to, beside operators (postroad suppress). Mail to them comes
// back to its sender at once; notifications go to everybody.
type Suppress struct {
	// Reasons are classes of refusals for which hosts put recipients on the list: invalid_recipient, inactive, complaint (a report of abuse; for
	// mail of the same class of clients only, and at once). Empty: only operators do.
	//
	// Change it to [invalid_recipient, inactive, complaint] to spare the reputation of this relay: who goes on writing to mailboxes that are not there
	// looks like a spammer.
	Reasons []string `yaml:"reasons"`

	// After is how many refusals it takes.
	After int `yaml:"after"`

	// Within is the time in which they must come.
	Within time.Duration `yaml:"within"`

	// Keep is how long a recipient then stays on the list.
	Keep time.Duration `yaml:"keep"`
}

func defaultSuppress() Suppress {
	return Suppress{Reasons: []string{}, After: suppress.DefaultAfter, Within: suppress.DefaultWithin, Keep: suppress.DefaultKeep}
}

func (c *Config) checkSuppress(f *faults) {
	s := &c.Delivery.Suppress
	for i, r := range s.Reasons {
		if !isReason(r) {
			f.add("delivery.suppress.reasons["+strconv.Itoa(i)+"]", "%q is no class of a refusal: write invalid_recipient, inactive or complaint", r)
		}
	}
	atLeastOne(f, "delivery.suppress.after", s.After)
	between(f, "delivery.suppress.within", s.Within, time.Minute, 365*24*time.Hour)
	between(f, "delivery.suppress.keep", s.Keep, time.Minute, 10*365*24*time.Hour)
}

// isReason takes any word that a class can be: operators may have classes of their own.
func isReason(word string) bool {
	for _, c := range word {
		if (c < 'a' || c > 'z') && c != '_' {
			return false
		}
	}
	return word != "" && len(word) <= 32
}
