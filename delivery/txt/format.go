package txt

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Record is a TXT record to be printed.
type Record struct {
	Name  string
	Value string        // 1 to 8192 octets
	TTL   time.Duration // in whole seconds. Default: 1 h
}

// The formats that Format knows.
const (
	FormatZone             = "zone"              // zone file, as BIND, NSD and Knot read it
	FormatNsupdate         = "nsupdate"          // input of nsupdate and knsupdate: replaces what is there
	FormatTerraform        = "terraform"         // aws_route53_record resources; the zone's id is var.zone_id
	FormatTerraformGeneric = "terraform-generic" // local.txt_records, a map by name, for the resources of any provider
	FormatRoute53          = "route53"           // change batch of aws route53 change-resource-record-sets
	FormatJSON             = "json"              // an array of objects with name, type, ttl, value and its strings
)

// Formats lists them all.
func Formats() []string {
	return []string{FormatZone, FormatNsupdate, FormatTerraform, FormatTerraformGeneric, FormatRoute53, FormatJSON}
}

const (
	defaultTTL = time.Hour
	maxTTL     = (1<<31 - 1) * time.Second // RFC 1035 §2.3.4, read as 31 bits
)

// Format prints records in one of the Formats. No two of them may have the same
// name. Values with octets that are not printable ASCII go into zone, nsupdate,
// terraform and route53 only: those have escapes for them.
func Format(w io.Writer, format string, records ...Record) error {
	print := map[string]func(*bytes.Buffer, []entry) error{
		FormatZone:             zoneFile,
		FormatNsupdate:         nsupdate,
		FormatTerraform:        terraform,
		FormatTerraformGeneric: terraformGeneric,
		FormatRoute53:          route53,
		FormatJSON:             plainJSON,
	}[format]
	if print == nil {
		return fmt.Errorf("format %q is not known: want %s", format, strings.Join(Formats(), ", "))
	}
	var entries []entry
	for _, r := range records {
		e, err := entryOf(r)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(entries, func(other entry) bool { return other.Name == e.Name }) {
			return fmt.Errorf("%s has two TXT records: print one of them", e.Name)
		}
		entries = append(entries, e)
	}
	var b bytes.Buffer
	if err := print(&b, entries); err != nil {
		return fmt.Errorf("print TXT records as %s: %w", format, err)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// entry is a Record that was checked.
type entry struct {
	Name    string   `json:"name"`
	Type    string   `json:"type"`
	TTL     uint32   `json:"ttl"`
	Value   string   `json:"value"`
	Strings []string `json:"strings"`
}

func entryOf(r Record) (entry, error) {
	name, err := cleanName(r.Name)
	if err != nil {
		return entry{}, fmt.Errorf("name of the TXT record: %w", err)
	}
	if err := checkValue(name, r.Value); err != nil {
		return entry{}, err
	}
	ttl, err := seconds(r.TTL)
	if err != nil {
		return entry{}, fmt.Errorf("TXT record of %s: %w", name, err)
	}
	return entry{name, "TXT", ttl, r.Value, split(r.Value)}, nil
}

// seconds makes a TTL of a duration.
func seconds(ttl time.Duration) (uint32, error) {
	if ttl == 0 {
		ttl = defaultTTL
	}
	if ttl < 0 || ttl > maxTTL || ttl%time.Second != 0 {
		return 0, fmt.Errorf("TTL %s: want whole seconds, at most %s", ttl, maxTTL)
	}
	return uint32(ttl / time.Second), nil
}

// quoted gives the strings of a record as zone files have them.
func (e entry) quoted() []string {
	var q []string
	for _, s := range e.Strings {
		q = append(q, `"`+escape(s)+`"`)
	}
	return q
}

func zoneFile(b *bytes.Buffer, entries []entry) error {
	for _, e := range entries {
		q := e.quoted()
		fmt.Fprintf(b, "%s. %d IN TXT ", e.Name, e.TTL)
		if len(q) == 1 {
			fmt.Fprintf(b, "%s\n", q[0])
			continue
		}
		fmt.Fprintf(b, "(\n\t%s )\n", strings.Join(q, "\n\t"))
	}
	return nil
}

// nsupdate deletes first, in the same transaction: there must not be two
// records. Its lines cannot go on in the next.
func nsupdate(b *bytes.Buffer, entries []entry) error {
	for _, e := range entries {
		fmt.Fprintf(b, "update delete %s. TXT\nupdate add %s. %d IN TXT %s\n", e.Name, e.Name, e.TTL, strings.Join(e.quoted(), " "))
		fmt.Fprintln(b, "send")
	}
	return nil
}

// route53String escapes a string as Route 53 wants it, in octal.
func route53String(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, `\%03o`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// terraform leaves out the first and the last quote: the provider adds them.
func terraform(b *bytes.Buffer, entries []entry) error {
	for i, e := range entries {
		if i > 0 {
			b.WriteByte('\n')
		}
		var parts []string
		for _, s := range e.Strings {
			parts = append(parts, hclString(route53String(s)))
		}
		fmt.Fprintf(b, "resource \"aws_route53_record\" %q {\n", resourceName(entries, i))
		fmt.Fprintf(b, "  zone_id = var.zone_id\n  name    = %q\n  type    = \"TXT\"\n  ttl     = %d\n", e.Name, e.TTL)
		fmt.Fprintf(b, "  records = [\"%s\"]\n}\n", strings.Join(parts, `\"\"`))
	}
	return nil
}

// terraformGeneric joins strings in the way that most providers take: \"\".
func terraformGeneric(b *bytes.Buffer, entries []entry) error {
	if err := areASCII(entries); err != nil {
		return err
	}
	b.WriteString("locals {\n  txt_records = {\n")
	for _, e := range entries {
		var parts []string
		for _, s := range e.Strings {
			parts = append(parts, hclString(s))
		}
		fmt.Fprintf(b, "    %q = {\n      ttl     = %d\n", e.Name, e.TTL)
		fmt.Fprintf(b, "      value   = \"%s\"\n", hclString(e.Value))
		fmt.Fprintf(b, "      strings = [\"%s\"]\n", strings.Join(parts, `", "`))
		fmt.Fprintf(b, "      joined  = \"%s\"\n    }\n", strings.Join(parts, `\"\"`))
	}
	b.WriteString("  }\n}\n")
	return nil
}

// hclString escapes what means something between quotes in Terraform.
func hclString(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "${", "$${", "%{", "%%{").Replace(s)
}

// resourceName makes an identifier of the name of entry i. Those that would be the same are numbered.
func resourceName(entries []entry, i int) string {
	id := func(e entry) string {
		s := strings.ReplaceAll(e.Name, ".", "_")
		if c := s[0]; c == '-' || '0' <= c && c <= '9' {
			s = "_" + s
		}
		return s
	}
	name := id(entries[i])
	for j, e := range entries {
		if j != i && id(e) == name {
			return name + "_" + strconv.Itoa(i+1)
		}
	}
	return name
}

func route53(b *bytes.Buffer, entries []entry) error {
	type value struct{ Value string }
	type set struct {
		Name            string
		Type            string
		TTL             uint32
		ResourceRecords []value
	}
	type change struct {
		Action            string
		ResourceRecordSet set
	}
	batch := struct{ Changes []change }{Changes: []change{}}
	for _, e := range entries {
		var q []string
		for _, s := range e.Strings {
			q = append(q, `"`+route53String(s)+`"`)
		}
		batch.Changes = append(batch.Changes, change{"UPSERT", set{e.Name + ".", e.Type, e.TTL, []value{{strings.Join(q, " ")}}}})
	}
	return encode(b, batch)
}

func plainJSON(b *bytes.Buffer, entries []entry) error {
	if err := areASCII(entries); err != nil {
		return err
	}
	if entries == nil {
		entries = []entry{}
	}
	return encode(b, entries)
}

func encode(b *bytes.Buffer, v any) error {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// areASCII refuses values whose octets would come out as others.
func areASCII(entries []entry) error {
	for _, e := range entries {
		if strings.ContainsFunc(e.Value, func(r rune) bool { return r < ' ' || r > '~' }) {
			return errors.New("the value of " + e.Name + " has octets that are not printable ASCII: use zone")
		}
	}
	return nil
}
