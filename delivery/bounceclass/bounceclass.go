// Package bounceclass says in one word why a host refused a recipient: invalid_recipient, mailbox_full, rate_limited and so on.
//
// The rules are a table (rules.txt): a reply's code, its enhanced status code and a regular expression on its text lead to a class, and
// the first rule that fits decides. An operator's rules come before the table.
//
//	c, err := bounceclass.New([]bounceclass.Rule{{Class: "policy", Code: "554", Text: `our corporate gateway`}})
//	class := c.Class(bounceclass.Reply{Code: 550, Enhanced: "5.1.1", Text: "user unknown"})
//
// A class is for people, counts and suppression. It never decides whether mail is tried again.
package bounceclass

import (
	_ "embed"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Class is why a host refused. Those of the table are constants; operators may add others.
type Class string

// The classes of the table.
const (
	InvalidRecipient Class = "invalid_recipient" // there is no such mailbox
	Inactive         Class = "inactive"          // there was one: closed, disabled
	MailboxFull      Class = "mailbox_full"
	Greylisted       Class = "greylisted"   // come back later (RFC 6647)
	RateLimited      Class = "rate_limited" // too much, too fast
	Reputation       Class = "reputation"   // our address or name is on somebody's list
	SpamContent      Class = "spam_content" // the message looks like spam
	Malware          Class = "malware"      // or like a danger
	AuthFailure      Class = "auth_failure" // SPF, DKIM or DMARC (RFC 7372)
	Policy           Class = "policy"       // any other rule of the receiver
	Relaying         Class = "relaying"     // the host does not take mail for this domain
	Routing          Class = "routing"      // loops, too many hops
	DNS              Class = "dns"          // a name cannot be looked up: the recipient's or ours
	Connection       Class = "connection"   // no connection, or it was lost
	TLS              Class = "tls"          // no encryption as one of the sides wants it
	Size             Class = "size"         // too large
	Content          Class = "content"      // cannot be taken in this form: 8 bits, UTF-8
	Protocol         Class = "protocol"     // the two sides do not understand each other
	Server           Class = "server"       // trouble of the receiver's own
	Signing          Class = "signing"      // we could not sign it
	Expired          Class = "expired"      // its time was over
	Unknown          Class = "unknown"
)

// Reply is what was said of a recipient.
type Reply struct {
	Code     int    // three digits; 0: not known, as in a report that gives a status only
	Enhanced string // RFC 3463; may be empty
	Text     string // without codes at its start; what is beyond 1000 octets is not looked at
	Local    bool   // we said it, not the host
}

// Rule leads to a class. The words are those of rules.txt, where an empty field is any.
type Rule struct {
	Class    string // a word of a-z and _, at most 32
	Code     string // 550, 5xx, several with commas; * is any; local: our own replies
	Enhanced string // 5.1.1, *.1.*, several with commas; * is any
	Text     string // regular expression (RE2) on the text in lower case
}

// Check says what is wrong with a rule.
func (r Rule) Check() error {
	_, err := compile(r)
	return err
}

// Bounds of what an operator may add.
const (
	MaxRules   = 200 // rules
	maxClasses = 20  // classes that are not in the table
	maxPattern = 2000
	maxText    = 1000 // octets of a reply that are looked at
)

//go:embed rules.txt
var table string

// Classifier holds the rules. It is safe for concurrent use.
type Classifier struct {
	rules   []rule
	classes []Class
}

type rule struct {
	class    Class
	codes    []string   // of three characters; nil is any
	enhanced [][]string // nil is any
	isLocal  bool
	text     []phrase // nil is any
}

// New makes a classifier. It reports everything that is wrong with the rules given, each by its number from 0.
func New(first []Rule) (*Classifier, error) {
	c := &Classifier{}
	var wrong []error
	if len(first) > MaxRules {
		return nil, fmt.Errorf("%d rules, want %d at most", len(first), MaxRules)
	}
	for i, r := range first {
		compiled, err := compile(r)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("rule %d: %w", i, err))
		}
		c.rules = append(c.rules, compiled)
	}
	own := len(c.rules)
	for i, line := range strings.Split(table, "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		compiled, err := compileLine(line)
		if err != nil {
			return nil, fmt.Errorf("table of bounce classes, line %d: %w", i+1, err) // a programmer's error, found by every test
		}
		c.rules = append(c.rules, compiled)
	}
	known := map[Class]bool{Unknown: true}
	c.classes = []Class{Unknown}
	add := func(list []rule) {
		for _, r := range list {
			if !known[r.class] {
				known[r.class] = true
				c.classes = append(c.classes, r.class)
			}
		}
	}
	add(c.rules[own:])
	n := len(c.classes)
	if add(c.rules[:own]); len(c.classes)-n > maxClasses {
		wrong = append(wrong, fmt.Errorf("%d new classes, want %d at most", len(c.classes)-n, maxClasses))
	}
	return c, errors.Join(wrong...)
}

// Classes are all that Class may answer: they are labels of metrics.
func (c *Classifier) Classes() []Class { return slices.Clone(c.classes) }

// Class says why. It never fails: what no rule fits, or a nil Classifier does not know, is Unknown.
func (c *Classifier) Class(r Reply) Class {
	if c == nil {
		return Unknown
	}
	var space [maxText]byte
	text := plain(space[:0], r.Text)
	var grams trigrams
	grams.addAll(text)
	code := codeOf(r)
	status := strings.Split(r.Enhanced, ".")
	for i := range c.rules {
		if c.rules[i].fits(r.Local, code, status, text, &grams) {
			return c.rules[i].class
		}
	}
	return Unknown
}

// codeOf is the code, or what an enhanced code says of it.
func codeOf(r Reply) string {
	switch {
	case r.Code >= 100 && r.Code <= 999:
		return strconv.Itoa(r.Code)
	case r.Enhanced != "":
		return r.Enhanced[:1] + "??"
	}
	return "???"
}

func (r *rule) fits(isLocal bool, code string, status []string, text []byte, grams *trigrams) bool {
	if r.isLocal != isLocal || r.codes != nil && !slices.ContainsFunc(r.codes, func(p string) bool { return fitsCode(p, code) }) {
		return false
	}
	if r.enhanced != nil && !slices.ContainsFunc(r.enhanced, func(p []string) bool { return fitsStatus(p, status) }) {
		return false
	}
	for i := range r.text {
		if r.text[i].fits(text, grams) {
			return true
		}
	}
	return r.text == nil
}

func fitsCode(pattern, code string) bool {
	for i := range 3 {
		if pattern[i] != 'x' && pattern[i] != code[i] {
			return false
		}
	}
	return true
}

func fitsStatus(pattern, status []string) bool {
	if len(status) != 3 {
		return false
	}
	for i, p := range pattern {
		if p != "*" && p != status[i] {
			return false
		}
	}
	return true
}

// compileLine reads a line of the table.
func compileLine(line string) (rule, error) {
	var words [3]string
	for i := range words {
		var found bool
		if words[i], line, found = strings.Cut(strings.TrimLeft(line, " "), " "); !found {
			return rule{}, errors.New("want class, code, enhanced and text")
		}
	}
	if line = strings.TrimSpace(line); line == "-" {
		line = ""
	}
	return compile(Rule{Class: words[0], Code: words[1], Enhanced: words[2], Text: line})
}

var (
	classSyntax  = regexp.MustCompile(`^[a-z][a-z_]{0,31}$`)
	codeSyntax   = regexp.MustCompile(`^[2-5x][0-9x][0-9x]$`)
	statusSyntax = regexp.MustCompile(`^[245*]\.(?:[0-9]{1,3}|\*)\.(?:[0-9]{1,3}|\*)$`)
)

func compile(r Rule) (rule, error) {
	out := rule{class: Class(r.Class), isLocal: r.Code == "local"}
	if !classSyntax.MatchString(r.Class) {
		return out, fmt.Errorf("class %.100q is not a word of a-z and _", r.Class)
	}
	if r.Code != "" && r.Code != "*" && !out.isLocal {
		for code := range strings.SplitSeq(r.Code, ",") {
			if !codeSyntax.MatchString(code) {
				return out, fmt.Errorf("code %.100q is none of 550, 5xx, * and local", code)
			}
			out.codes = append(out.codes, code)
		}
	}
	if r.Enhanced != "" && r.Enhanced != "*" {
		for status := range strings.SplitSeq(r.Enhanced, ",") {
			if !statusSyntax.MatchString(status) {
				return out, fmt.Errorf("enhanced code %.100q is none of 5.1.1, *.1.* and *", status)
			}
			out.enhanced = append(out.enhanced, strings.Split(status, "."))
		}
	}
	if r.Text == "" {
		return out, nil
	}
	if len(r.Text) > maxPattern {
		return out, fmt.Errorf("a text of %d octets, want %d at most", len(r.Text), maxPattern)
	}
	var err error
	out.text, err = compilePhrases(r.Text)
	return out, err
}
