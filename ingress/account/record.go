package account

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Bounds of a record.
const (
	version = 1

	maxRecordBytes  = 64 << 10
	maxRecordDepth  = 8
	maxNetworks     = 64
	maxSenders      = 256
	maxCertificates = 16
	maxClassOctets  = 32
)

// Fault is one thing that is wrong with a record.
type Fault struct {
	Field string // for example passwords[0].created; empty: the record as a whole
	Text  string // what is wrong and what to do
}

// Faults are all that is wrong with a record.
type Faults []Fault

// Error prints them in one line.
func (f Faults) Error() string {
	parts := make([]string, len(f))
	for i, one := range f {
		parts[i] = strings.TrimPrefix(one.Field+": "+one.Text, ": ")
	}
	return strings.Join(parts, "; ")
}

// Decode reads the fields of a record as they stand in a file or a secret. It
// is strict: a field that it does not know may be one that restricts. The error
// is Faults. The revision tells this version of the record from others.
func Decode(name, revision string, fields map[string]any) (*Client, error) {
	d := &decoder{fields: fields}
	c := &Client{Name: name, revision: revision}
	if clean, ok := CleanName(name); !ok || clean != name {
		d.fault("", "%q is no name of a client: want lower-case letters, digits, and . - _ + @ between them", name)
	}
	d.version()
	c.Class = d.class()
	c.Disabled = d.flag("disabled")
	c.Networks = parseList(d, "networks", maxNetworks, ParseNetwork)
	c.Senders = parseList(d, "senders", maxSenders, ParseSender)
	c.Certificates = parseList(d, "certificates", maxCertificates, ParseCertificate)
	c.Passwords = d.passwords()
	if p, ok := d.clear(); ok {
		c.Passwords = []Password{p}
	}
	d.unknown("", "version", "class", "disabled", "networks", "senders", "certificates", "passwords", "password")
	if len(d.faults) > 0 {
		return nil, d.faults
	}
	return c, nil
}

// decoder takes the fields of one object apart and gathers all faults.
type decoder struct {
	fields map[string]any
	within string // field that holds this object, with its dot
	faults Faults
}

func (d *decoder) fault(field, format string, args ...any) {
	d.faults = append(d.faults, Fault{Field: strings.TrimSuffix(d.within+field, "."), Text: fmt.Sprintf(format, args...)})
}

// unknown reports fields that have no business here.
func (d *decoder) unknown(within string, known ...string) {
	for _, name := range slices.Sorted(maps.Keys(d.fields)) {
		if !slices.Contains(known, name) {
			d.fault(within+brief(name), "there is no such field (here can be: %s)", strings.Join(known, ", "))
		}
	}
}

func (d *decoder) version() {
	if _, has := d.fields["password"]; has && d.fields["version"] == nil {
		return // somebody who writes nothing but a password need not know of versions
	}
	switch n, ok := wholeNumber(d.fields["version"]); {
	case d.fields["version"] == nil:
		d.fault("version", "is missing: write %d", version)
	case !ok || n < 1:
		d.fault("version", "want the number %d", version)
	case n > version:
		d.fault("version", "is %d, which is newer than this program: update it, or write the record as version %d", n, version)
	}
}

func wholeNumber(value any) (int, bool) {
	switch n := value.(type) {
	case json.Number:
		i, err := n.Int64()
		return int(i), err == nil && within(int(i), 0, math.MaxInt32)
	case float64:
		return int(n), n == math.Trunc(n) && n >= 0 && n <= math.MaxInt32
	case int:
		return n, true
	}
	return 0, false
}

func (d *decoder) class() string {
	class := d.text("class")
	if err := CheckClass(class); err != nil {
		d.fault("class", "%s", err)
	}
	return class
}

// CheckClass tells whether a word can be a class. Empty is none.
func CheckClass(class string) error {
	if len(class) > maxClassOctets || strings.Trim(class, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		return fmt.Errorf("%q is no class: want a word of lower-case letters, digits, - and _, at most %d", brief(class), maxClassOctets)
	}
	return nil
}

// text reads an optional field.
func (d *decoder) text(field string) string {
	value, ok := d.fields[field]
	if !ok {
		return ""
	}
	text, ok := value.(string)
	if !ok {
		d.fault(field, "want a text in quotes, got %s", describe(value))
	}
	return text
}

func (d *decoder) flag(field string) bool {
	value, ok := d.fields[field]
	if !ok {
		return false
	}
	flag, ok := value.(bool)
	if !ok {
		d.fault(field, "want true or false, got %s", describe(value))
	}
	return flag
}

// list reads an optional list.
func (d *decoder) list(field string, most int) []any {
	value, ok := d.fields[field]
	if !ok {
		return nil
	}
	list, ok := value.([]any)
	if !ok {
		d.fault(field, "want a list in brackets, got %s", describe(value))
	}
	if len(list) > most {
		d.fault(field, "has %d entries: leave at most %d", len(list), most)
		return nil
	}
	return list
}

// parseList reads a list of texts of one kind.
func parseList[T comparable](d *decoder, field string, most int, parse func(string) (T, error)) []T {
	var out []T
	for i, entry := range d.list(field, most) {
		at := fmt.Sprintf("%s[%d]", field, i)
		text, ok := entry.(string)
		if !ok {
			d.fault(at, "want a text in quotes, got %s", describe(entry))
			continue
		}
		value, err := parse(text)
		switch {
		case err != nil:
			d.fault(at, "%s", err)
		case slices.Contains(out, value):
			d.fault(at, "%q stands there twice: remove one", brief(text))
		default:
			out = append(out, value)
		}
	}
	return out
}

func (d *decoder) passwords() []Password {
	var out []Password
	var first *SCRAM
	list := d.list("passwords", maxPasswords)
	for i, entry := range list {
		at := fmt.Sprintf("passwords[%d]", i)
		fields, ok := entry.(map[string]any)
		if !ok {
			d.fault(at, "want an object in braces, got %s", describe(entry))
			continue
		}
		inner := &decoder{fields: fields, within: at + "."}
		p := inner.password()
		if slices.ContainsFunc(out, func(other Password) bool { return other.ID == p.ID }) {
			inner.fault("id", "%q is that of another password: choose another", brief(p.ID))
		}
		if p.SCRAM != nil && first == nil {
			first = p.SCRAM
		} else if p.SCRAM != nil && !first.sameSalt(p.SCRAM) {
			inner.fault("scram_sha_256", "its salt or iterations are not those of the other password, and clients could not know which to use: "+
				"remove one of the two, and set the new password with postroad client passwd")
		}
		d.faults = append(d.faults, inner.faults...)
		out = append(out, p)
	}
	newestFirst(out)
	return out
}

func (d *decoder) password() Password {
	p := Password{ID: d.text("id"), Created: d.time("created"), NotAfter: d.time("not_after")}
	if p.ID == "" || len(p.ID) > maxClassOctets || !isWord(p.ID) {
		d.fault("id", "want a word of letters, digits, - and _, at most %d, that no other password of this client has", maxClassOctets)
	}
	if _, ok := d.fields["created"]; !ok {
		d.fault("created", "is missing: write the time when the password was set, such as 2026-01-31T12:00:00Z")
	}
	scram, argon := d.text("scram_sha_256"), d.text("argon2id")
	if scram != "" {
		var err error
		if p.SCRAM, err = ParseSCRAM(scram); err != nil {
			d.fault("scram_sha_256", "%s: set the password again with postroad client passwd", err)
		}
	}
	if argon != "" {
		var err error
		if p.Argon2id, err = ParseArgon2id(argon); err != nil {
			d.fault("argon2id", "%s: set the password again with postroad client passwd", err)
		}
	}
	if scram == "" && argon == "" {
		d.fault("", "has no verifier: give scram_sha_256 or argon2id, or remove it")
	}
	d.unknown("", "id", "created", "not_after", "scram_sha_256", "argon2id")
	return p
}

// clear reads a password that stands in the record itself. A line end behind it, which echo and editors leave, is not part of it.
func (d *decoder) clear() (p Password, ok bool) {
	if _, ok := d.fields["password"]; !ok {
		return p, false
	}
	faults := len(d.faults)
	text := strings.TrimSuffix(strings.TrimSuffix(d.text("password"), "\n"), "\r")
	if len(d.faults) > faults {
		return p, false
	}
	if _, both := d.fields["passwords"]; both {
		d.fault("password", "stands beside passwords: keep one of the two")
		return p, false
	}
	if err := CheckPassword(text); err != nil {
		d.fault("password", "%s", err)
		return p, false
	}
	prepared, _ := prepare(text) // CheckPassword has done it too
	return Password{ID: clearID, clear: &clearText{text: prepared}}, true
}

func isWord(s string) bool {
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}

// time reads an optional time.
func (d *decoder) time(field string) time.Time {
	text := d.text(field)
	if text == "" {
		if value, ok := d.fields[field]; ok && value == "" {
			d.fault(field, "is empty: write a time such as 2026-01-31T12:00:00Z, or remove it")
		}
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil || t.Year() < 1970 || t.Year() > 9999 {
		d.fault(field, "%q is no time: write it as 2026-01-31T12:00:00Z", brief(text))
		return time.Time{}
	}
	return t.UTC().Truncate(time.Second)
}

// describe says of what kind a value is. It does not show it: it may be a secret
// in the wrong place.
func describe(value any) string {
	switch value.(type) {
	case nil:
		return "null"
	case string:
		return "a text"
	case bool:
		return "true or false"
	case json.Number, float64, int:
		return "a number"
	case []any:
		return "a list"
	case map[string]any:
		return "an object"
	}
	return fmt.Sprintf("a %T", value)
}

func brief(s string) string {
	const most = 40
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// Fields is what Decode reads: only plain maps, lists and values, as JSON and
// the API of a secrets store have them.
func (c *Client) Fields() map[string]any {
	fields := map[string]any{"version": version}
	if c.Class != "" {
		fields["class"] = c.Class
	}
	if c.Disabled {
		fields["disabled"] = true
	}
	put := func(name string, list []any) {
		if len(list) > 0 {
			fields[name] = list
		}
	}
	put("networks", texts(c.Networks, netip.Prefix.String))
	put("senders", texts(c.Senders, Sender.String))
	put("certificates", texts(c.Certificates, func(c Certificate) string { return string(c) }))
	var passwords []any
	for _, p := range c.Passwords {
		if p.clear != nil {
			fields["password"] = p.clear.text
			continue
		}
		passwords = append(passwords, p.fields())
	}
	put("passwords", passwords)
	return fields
}

func texts[T any](list []T, text func(T) string) (out []any) {
	for _, entry := range list {
		out = append(out, text(entry))
	}
	return out
}

func (p *Password) fields() map[string]any {
	fields := map[string]any{"id": p.ID, "created": p.Created.UTC().Format(time.RFC3339)}
	if !p.NotAfter.IsZero() {
		fields["not_after"] = p.NotAfter.UTC().Format(time.RFC3339)
	}
	if p.SCRAM != nil {
		fields["scram_sha_256"] = p.SCRAM.String()
	}
	if p.Argon2id != nil {
		fields["argon2id"] = p.Argon2id.String()
	}
	return fields
}
