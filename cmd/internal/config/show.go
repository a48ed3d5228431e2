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

// Show prints the whole configuration with its defaults as YAML that Parse reads again.
func (c *Config) Show() (string, error) {
	out, err := yaml.Marshal(tree(reflect.ValueOf(*c)))
	if err != nil {
		return "", fmt.Errorf("print configuration: %w", err)
	}
	return string(out), nil
}

// Map gives the configuration as maps, lists and plain values, as JSON wants it.
func (c *Config) Map() map[string]any { return plain(tree(reflect.ValueOf(*c))).(map[string]any) }

// tree turns settings into YAML nodes, in the order of the structs.
func tree(v reflect.Value) *yaml.Node {
	switch {
	case v.Kind() == reflect.Struct && v.Type() != typePrefix:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for i := range v.NumField() {
			if name := v.Type().Field(i).Tag.Get("yaml"); name != "" {
				n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: name}, tree(v.Field(i)))
			}
		}
		return n
	case v.Kind() == reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			n.Content = append(n.Content, tree(v.Index(i)))
		}
		if !isSection(v.Type().Elem()) {
			n.Style = yaml.FlowStyle
		}
		return n
	}
	n := &yaml.Node{Kind: yaml.ScalarNode, Value: format(v)}
	if v.Kind() == reflect.String {
		n.Tag = "!!str"
	}
	if n.Value == "" {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// plain turns nodes into what encoding/json prints.
func plain(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			m[n.Content[i].Value] = plain(n.Content[i+1])
		}
		return m
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, item := range n.Content {
			list[i] = plain(item)
		}
		return list
	}
	if n.Tag == "!!str" {
		return n.Value
	}
	if number, err := strconv.ParseInt(n.Value, 10, 64); err == nil {
		return number
	}
	if n.Value == "true" || n.Value == "false" {
		return n.Value == "true"
	}
	return n.Value
}

func isSection(t reflect.Type) bool { return t.Kind() == reflect.Struct && t != typePrefix }

// format prints one value as setScalar reads it.
func format(v reflect.Value) string {
	switch value := v.Interface().(type) {
	case Size:
		return value.String()
	case time.Duration:
		return formatDuration(value)
	case netip.Prefix:
		return value.String()
	case bool:
		return strconv.FormatBool(value)
	case int:
		return strconv.Itoa(value)
	}
	return v.String()
}

// formatDuration prints 5d, 4h, 1m30s, 0s.
func formatDuration(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	text := ""
	if days := d / (24 * time.Hour); days > 0 {
		text = strconv.Itoa(int(days)) + "d"
		d -= days * 24 * time.Hour
	}
	if d == 0 {
		return text
	}
	rest := d.String()
	if strings.HasSuffix(rest, "m0s") {
		rest = strings.TrimSuffix(rest, "0s")
	}
	if strings.HasSuffix(rest, "h0m") {
		rest = strings.TrimSuffix(rest, "0m")
	}
	return text + rest
}
