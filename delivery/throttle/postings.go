package throttle

import "time"

// Kinds of postings. Their data are the structs of the same name; names are those of what is suspended, of Rule.Match,
// of paths, and of a source and a site.
const (
	KindSuspension = "suspension"
	KindLimit      = "limit"
	KindCircuit    = "circuit"
	KindSlow       = "slow"
	KindMark       = "mark"
	kindPull       = "pull"
	kindProbe      = "probe"
)

// Suspension says that nothing is sent somewhere for a time.
type Suspension struct {
	Name    string    `json:"name"` // of a site, a domain of recipients, or a path
	Owner   string    `json:"owner"`
	Reason  string    `json:"reason"`
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"`
	Auto    bool      `json:"auto,omitempty"`    // by a reaction to a reply
	Domains []string  `json:"domains,omitempty"` // whose jobs it sent away, as far as known
}

// Circuit says that nobody at a path could be reached.
type Circuit struct {
	Path       string        `json:"path"`
	Since      time.Time     `json:"since"`
	Until      time.Time     `json:"until"` // of the next probe
	Pause      time.Duration `json:"pause"` // before it
	Code       int           `json:"code"`  // of the last failure
	Enhanced   string        `json:"enhanced"`
	Text       string        `json:"text"`
	Local      bool          `json:"local"`
	Host       string        `json:"host,omitempty"`
	ProbeUntil time.Time     `json:"probe_until,omitzero"` // somebody probes it
	Domains    []string      `json:"domains,omitempty"`
}

// LiveLimit is a rule that an operator set.
type LiveLimit struct {
	Rule   Rule      `json:"rule"`
	Owner  string    `json:"owner"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since"`
}

// Slow says that a path gets half of what it could have.
type Slow struct {
	Path   string    `json:"path"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until"`
}

// Mark says that a source is not to be used for a site.
type Mark struct {
	Source string    `json:"source"`
	Site   string    `json:"site"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until"`
}
