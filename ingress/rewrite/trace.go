package rewrite

// Stage is what kind of change a step is.
type Stage string

// The stages, in the order in which they come.
const (
	StageComplete  Stage = "complete"  // a domain was added
	StageCanonical Stage = "canonical" // a rule of the rules file
	StageAlias     Stage = "alias"     // an entry of the aliases file
)

// Step is one change of an address, or one that failed.
type Step struct {
	Stage  Stage    `json:"stage"`
	Field  string   `json:"field,omitempty"` // header field; empty in the envelope
	File   string   `json:"file,omitempty"`  // of the rule or alias that did it
	Line   int      `json:"line,omitempty"`
	Rule   string   `json:"rule,omitempty"` // as it is written there
	Before string   `json:"before"`
	After  []string `json:"after,omitempty"` // the same as Before when the rule keeps the address
	Error  string   `json:"error,omitempty"` // why the address stayed as it was, or is refused
}

// Trace gathers the steps of one call. The nil *Trace gathers nothing and costs
// nothing.
type Trace struct {
	Steps []Step

	field string // header field that is being rewritten
}

// add notes a step; callers ask for nil first, so that nothing is printed in vain.
func (t *Trace) add(s Step) {
	s.Field = t.field
	t.Steps = append(t.Steps, s)
}

func (t *Trace) enter(field []byte) {
	if t != nil {
		t.field = string(field)
	}
}
