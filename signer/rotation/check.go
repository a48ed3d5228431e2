package rotation

import (
	"context"
	"fmt"
	"strings"
	"time"

	"postroad/signer/keyring"
)

// Publication is what the DNS says.
type Publication interface {
	// Lookup asks every authoritative server of the zone that holds name, and
	// some resolvers that are independent of each other, for the TXT records of
	// name. What one server did is in its Answer; the error says that the servers
	// to ask could not be found. It ends with ctx.
	Lookup(ctx context.Context, name string) (Answers, error)
}

// Answers are what all servers that were asked said of one name.
type Answers struct {
	Answers []Answer
	// NegativeTTL is how long resolvers may remember that there is no record: the
	// lesser of the zone's SOA minimum and the TTL of that SOA. Zero: unknown.
	NegativeTTL time.Duration
}

// Answer is what one server said of one name.
type Answer struct {
	Server          string   // its name or address, for people
	IsAuthoritative bool     // or else a resolver
	Records         []string // TXT records, the strings of each joined; none: there is no record
	TTL             time.Duration
	Err             error // it gave no answer
}

// Fault is a kind of problem with a record.
type Fault string

// The faults.
const (
	FaultUnreachable Fault = "unreachable" // nothing is known
	FaultMissing     Fault = "missing"     // there is no record
	FaultWrongKey    Fault = "wrong-key"   // it is another key's
	FaultSeveral     Fault = "several"     // there are several records; verifiers pick any
	FaultDamaged     Fault = "damaged"     // it is no key record
	FaultRevoked     Fault = "revoked"     // p= is empty
	FaultTesting     Fault = "testing"     // t=y
	FaultUnusable    Fault = "unusable"    // it is the key, but not for our signatures
	FaultTooFew      Fault = "too-few"     // not enough servers were asked
	FaultStillThere  Fault = "still-there" // a record that should be gone
)

// Problem is what is wrong with a record at one server.
type Problem struct {
	Server string `json:"server,omitempty"` // empty: no single one
	Fault  Fault  `json:"fault"`
	Text   string `json:"text"` // what is wrong
	Do     string `json:"do"`   // what to do
}

func (p Problem) String() string {
	if p.Server == "" {
		return p.Text + ": " + p.Do
	}
	return p.Server + " " + p.Text + ": " + p.Do
}

// Report is what the DNS says of the record of one key, held against what it
// has to say.
type Report struct {
	Name          string    `json:"name"`
	Want          string    `json:"want"`          // the record's value; empty: there should be none
	Authoritative int       `json:"authoritative"` // servers asked
	Resolvers     int       `json:"resolvers"`
	Problems      []Problem `json:"problems"`
	Accepted      []string  `json:"accepted,omitempty"` // servers whose silence was accepted
	// TTL and NegativeTTL are how long resolvers may remember the record, and
	// that there was none.
	TTL         time.Duration `json:"ttl"`
	NegativeTTL time.Duration `json:"negative_ttl"`
}

// OK reports that all servers say what they should.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

// Is reports that there is a problem of this kind.
func (r *Report) Is(f Fault) bool {
	for _, p := range r.Problems {
		if p.Fault == f {
			return true
		}
	}
	return false
}

// known reports that no server says anything wrong, though some may be silent.
func (r *Report) known() bool {
	for _, p := range r.Problems {
		if p.Fault != FaultUnreachable && p.Fault != FaultTooFew {
			return false
		}
	}
	return true
}

// String is the report in words, a line for each problem.
func (r *Report) String() string {
	if r.OK() {
		text := fmt.Sprintf("%s is as it should be at %d authoritative servers and %d resolvers", r.Name, r.Authoritative-len(r.Accepted), r.Resolvers)
		if len(r.Accepted) > 0 {
			text += "; accepted that nobody answers at " + strings.Join(r.Accepted, ", ")
		}
		return text
	}
	lines := []string{r.Name + " is not as it should be"}
	for _, p := range r.Problems {
		lines = append(lines, "  "+p.String())
	}
	return strings.Join(lines, "\n")
}

// sum says in short what is wrong, and what to do about the first of it.
func (r *Report) sum() (text, do string) {
	const most = 3
	var texts []string
	for i, p := range r.Problems {
		if i == most {
			texts = append(texts, fmt.Sprintf("and %d more", len(r.Problems)-most))
			break
		}
		texts = append(texts, strings.TrimSpace(p.Server+" "+p.Text))
	}
	if len(r.Problems) > 0 {
		do = r.Problems[0].Do
	}
	return strings.Join(texts, "; "), do
}

// cached is how long a resolver may go on with what it knew before.
func (r *Report) cached() time.Duration {
	negative := r.NegativeTTL
	if negative <= 0 {
		negative = unknownNegativeTTL
	}
	return min(max(r.TTL, negative), maxCache)
}

// lookupTimeout bounds the questions about one record.
const lookupTimeout = 30 * time.Second

// Check holds what the DNS says of a key against its entry: every authoritative
// server, and at least so many resolvers, must have exactly its record. Of a
// key that is Revoked they must have an empty p=, or nothing; of one that is
// Removed nothing. Authoritative servers that are named in acceptDead, by host
// name or address, may be silent, as long as another one answers.
func Check(ctx context.Context, dns Publication, e keyring.Entry, resolvers int, acceptDead ...string) Report {
	r := Report{Name: Name(e.Domain, e.Selector), Want: wanted(&e)}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	answers, err := dns.Lookup(ctx, r.Name)
	if err != nil {
		r.add("", FaultUnreachable, "the servers to ask could not be found: "+err.Error(), "repair the zone or the network, and check again")
		return r
	}
	r.NegativeTTL = answers.NegativeTTL
	for _, a := range answers.Answers {
		if a.IsAuthoritative {
			r.Authoritative++
		} else {
			r.Resolvers++
		}
		r.TTL = max(r.TTL, a.TTL)
		if a.Err != nil && a.IsAuthoritative && a.isAny(acceptDead) {
			r.Accepted = append(r.Accepted, a.Server)
			continue
		}
		r.judge(&a, &e)
	}
	switch {
	case r.Authoritative == 0:
		r.add("", FaultTooFew, "no authoritative server was asked", "look whether the zone is delegated")
	case r.Authoritative == len(r.Accepted):
		r.add("", FaultTooFew, "no authoritative server answers", "repair one of them: without any nobody can verify")
	}
	if r.Resolvers < resolvers {
		r.add("", FaultTooFew, fmt.Sprintf("%d resolvers were asked, want %d", r.Resolvers, resolvers), "configure more resolvers that are independent of each other")
	}
	return r
}

// wanted is the value that the record of a key should have in its state.
func wanted(e *keyring.Entry) string {
	switch e.State {
	case keyring.Revoked:
		return revokedValue
	case keyring.Removed:
		return ""
	}
	return e.Record
}

func (r *Report) add(server string, f Fault, text, do string) {
	r.Problems = append(r.Problems, Problem{server, f, text, do})
}

// isAny reports that the server is one of those, by its host name, its address,
// or both.
func (a *Answer) isAny(servers []string) bool {
	host, address, _ := strings.Cut(a.Server, " ")
	for _, s := range servers {
		s = strings.TrimSuffix(s, ".")
		if s != "" && (strings.EqualFold(s, host) || s == address || s == a.Server) {
			return true
		}
	}
	return false
}

// judge holds one answer against the entry.
func (r *Report) judge(a *Answer, e *keyring.Entry) {
	if a.Err != nil {
		do := "repair it, or take it out of signer.rotation.resolvers, and check again"
		if name, _, _ := strings.Cut(a.Server, " "); a.IsAuthoritative {
			do = "repair it, or take its NS record out of the zone, and check again; --accept-dead " + name + " goes on without it this once"
		}
		r.add(a.Server, FaultUnreachable, "gave no answer ("+a.Err.Error()+")", do)
		return
	}
	if e.State.Gone() {
		r.judgeGone(a, e)
		return
	}
	switch len(a.Records) {
	case 0:
		do := "publish the record there; if it is published, look why this server does not have it"
		if !a.IsAuthoritative {
			do = "it may remember that there was none: wait, after it is on all authoritative servers"
		}
		r.add(a.Server, FaultMissing, "has no record", do)
		return
	case 1:
	default:
		r.add(a.Server, FaultSeveral, fmt.Sprintf("has %d records, and verifiers pick any", len(a.Records)), "leave the one record of this key")
		return
	}
	theirs, err := parseRecord(a.Records[0])
	if err != nil {
		r.add(a.Server, FaultDamaged, "has a record that "+err.Error(), "publish exactly the record of this key")
		return
	}
	ours, err := parseRecord(e.Record)
	if err != nil {
		r.add("", FaultDamaged, "what is stored as the key's own record "+err.Error(), "make a new key")
		return
	}
	if fault, text := theirs.differs(&ours); fault != "" {
		do := "publish exactly the record of this key"
		if !a.IsAuthoritative {
			do += "; if the authoritative servers have it, wait until the old one is forgotten"
		}
		r.add(a.Server, fault, "has a record that "+text, do)
	}
}

func (r *Report) judgeGone(a *Answer, e *keyring.Entry) {
	for _, text := range a.Records {
		theirs, err := parseRecord(text)
		switch {
		case e.State == keyring.Removed:
			r.add(a.Server, FaultStillThere, "still has a record", "delete it")
		case err != nil || len(theirs.public) != 0:
			r.add(a.Server, FaultStillThere, "has a record that does not say that the key is revoked", "publish "+revokedValue)
		}
	}
}
