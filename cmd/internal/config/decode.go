package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

var (
	typeSize     = reflect.TypeFor[Size]()
	typeDuration = reflect.TypeFor[time.Duration]()
	typePrefix   = reflect.TypeFor[netip.Prefix]()
	typeListener = reflect.TypeFor[Listener]()
	typeRoute    = reflect.TypeFor[Route]()
	typeShaping  = reflect.TypeFor[Shaping]()
	typeReaction = reflect.TypeFor[Reaction]()
	typeClass    = reflect.TypeFor[ClientClass]()
	typeSigning  = reflect.TypeFor[SigningDomain]()
	typeSchedule = reflect.TypeFor[Schedule]()
)

// decoder fills a Config from YAML nodes. Unlike the library's own it does not stop at the first fault and remembers where
// each setting stands.
type decoder struct {
	faults faults
}

// fill sets v from n; setting names it.
func (d *decoder) fill(v reflect.Value, n *yaml.Node, setting string) {
	d.faults.source.lines[setting] = n.Line
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		d.faults.addAt(n.Line, setting, "anchors and aliases are not read here: write the value out")
		return
	}
	switch {
	case v.Kind() == reflect.Struct && v.Type() != typePrefix:
		d.fillStruct(v, n, setting)
	case v.Kind() == reflect.Slice:
		d.fillSlice(v, n, setting)
	default:
		d.fillScalar(v, n, setting)
	}
}

func (d *decoder) fillStruct(v reflect.Value, n *yaml.Node, setting string) {
	if isNull(n) { // "signer:" with everything below it commented out
		return
	}
	if n.Kind != yaml.MappingNode {
		d.faults.addAt(n.Line, setting, "must be a section of settings, got %s", describe(n))
		return
	}
	fields := fieldsOf(v.Type())
	seen := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := join(setting, key.Value)
		if first, ok := seen[key.Value]; ok {
			d.faults.addAt(key.Line, name, "is given twice, first in line %d: remove one", first)
			continue
		}
		seen[key.Value] = key.Line
		index, ok := fields[key.Value]
		if !ok {
			d.faults.addAt(key.Line, name, "there is no such setting%s", suggestion(key.Value, fields))
			continue
		}
		d.fill(v.Field(index), value, name)
		d.faults.source.lines[name] = key.Line
	}
}

func (d *decoder) fillSlice(v reflect.Value, n *yaml.Node, setting string) {
	if isNull(n) {
		d.faults.addAt(n.Line, setting, "has no value: write [] for an empty list, or remove the line for the default")
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.faults.addAt(n.Line, setting, "must be a list, got %s: write [a, b], or one item per line after a dash", describe(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		out.Index(i).Set(itemDefault(v.Type().Elem()))
		d.fill(out.Index(i), item, fmt.Sprintf("%s[%d]", setting, i))
	}
	v.Set(out)
}

func (d *decoder) fillScalar(v reflect.Value, n *yaml.Node, setting string) {
	if isNull(n) {
		d.faults.addAt(n.Line, setting, "has no value: give one, or remove the line for the default")
		return
	}
	if v.Type() == typeSchedule {
		n = scheduleOf(n)
	}
	if n.Kind != yaml.ScalarNode {
		d.faults.addAt(n.Line, setting, "must be one value, got %s", describe(n))
		return
	}
	if err := setScalar(v, n.Value); err != nil {
		d.faults.addAt(n.Line, setting, "%s", err)
	}
}

// setScalar parses text by the type of v.
func setScalar(v reflect.Value, text string) error {
	switch v.Type() {
	case typeSize:
		size, err := ParseSize(text)
		if err == nil {
			v.SetInt(int64(size))
		}
		return err
	case typeDuration:
		duration, err := parseDuration(text)
		if err == nil {
			v.SetInt(int64(duration))
		}
		return err
	case typePrefix:
		prefix, err := parsePrefix(text)
		if err == nil {
			v.Set(reflect.ValueOf(prefix))
		}
		return err
	}
	if c, ok := v.Interface().(choice); ok {
		for _, word := range c.choices() {
			if text == word {
				v.SetString(text)
				return nil
			}
		}
		return fmt.Errorf("%q is not one of %s", text, strings.Join(c.choices(), ", "))
	}
	switch v.Kind() {
	case reflect.Bool:
		if text != "true" && text != "false" {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		v.SetBool(text == "true")
	case reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
		v.SetInt(int64(n))
	case reflect.String:
		v.SetString(text)
	default:
		return fmt.Errorf("a setting of type %s cannot be read", v.Type())
	}
	return nil
}

// parseDuration reads 90s, 5m, 4h, 5d, 1d12h; a number without a unit is refused.
func parseDuration(s string) (time.Duration, error) {
	wrong := fmt.Errorf("%q is no duration: write a number with a unit, such as 30s, 5m, 4h or 5d", s)
	if s == "" {
		return 0, wrong
	}
	days, rest, hasDays := strings.Cut(s, "d")
	if !hasDays {
		days, rest = "0", s
	}
	n, err := strconv.ParseUint(days, 10, 16)
	if err != nil {
		return 0, wrong
	}
	total := time.Duration(n) * 24 * time.Hour
	if rest != "" {
		part, err := time.ParseDuration(rest)
		if err != nil {
			return 0, wrong
		}
		total += part
	}
	if total < 0 {
		return 0, fmt.Errorf("%q is negative", s)
	}
	return total, nil
}

// parsePrefix reads a network, or an address as the network of one.
func parsePrefix(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		if p != p.Masked() {
			return netip.Prefix{}, fmt.Errorf("%q has bits behind its mask: write %s, or %s for that one address", s, p.Masked(), p.Addr())
		}
		return p, nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.Prefix{}, fmt.Errorf("%q is no network: write an address with a mask, such as 10.0.0.0/8 or 2001:db8::/32", s)
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// describe names a node for people.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a section"
	case yaml.SequenceNode:
		return "a list"
	default:
		return strconv.Quote(n.Value)
	}
}

// fieldsOf maps the names of a section's settings to field indexes.
func fieldsOf(t reflect.Type) map[string]int {
	fields := make(map[string]int, t.NumField())
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("yaml"); name != "" {
			fields[name] = i
		}
	}
	return fields
}

func join(section, name string) string {
	if section == "" {
		return name
	}
	return section + "." + name
}
