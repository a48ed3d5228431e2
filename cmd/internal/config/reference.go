package config

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Reference is docs/configuration.md.
func Reference() (string, error) {
	settings, err := Settings()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString(`# Configuration

One YAML file, given with ` + "`-c`" + `, or /etc/postroad/postroad.yaml when that exists. Without a file every setting has its default: everything
in one process, mail accepted from this machine only, data below the current directory.

- ` + "`postroad config check -c FILE`" + ` reports everything that is wrong, each fault with its line.
- ` + "`postroad config show -c FILE`" + ` prints what holds, defaults included.
- ` + "`postroad config schema`" + ` prints a JSON schema for editors.

Unknown settings, settings given twice and values of the wrong kind are errors. Sizes are octets or carry a unit (50MiB, 10GiB); durations
always carry one (30s, 5m, 4h, 5d). Secrets never stand in this file: it names files that hold them.

An environment variable takes the place of what the file says: ` + "`POSTROAD__DELIVERY__MAX_AGE=4d`" + ` is delivery.max_age, with two underscores for
each dot. Lists are words between commas, or YAML in brackets: ` + "`POSTROAD__DELIVERY__ROUTES='[{domains: [\"*\"], via: \"smtp:[mx.example.com]:25\"}]'`" + `. An
empty variable says nothing; one that names no setting is an error.

This page is made from the program (` + "`go test ./cmd/internal/config -update`" + `) and checked by a test.

`)
	b.WriteString("```yaml\n# a complete small configuration\n" + smallExample + "```\n")
	for _, s := range settings {
		s.writeTo(&b)
	}
	return b.String(), nil
}

// smallExample is checked by a test.
const smallExample = `hostname: relay.example.com
data_dir: /var/lib/postroad
ingress:
  listeners:
    - address: :25
      trusted_networks: [10.0.0.0/8]
secrets:
  dir: /etc/postroad/secrets
delivery:
  routes:
    - domains: ["*"]
      via: smtp:[smarthost.example.com]:25
`

func (s Setting) writeTo(b *strings.Builder) {
	level := "###"
	if s.Section && !strings.Contains(s.Name, ".") {
		level = "##"
	}
	fmt.Fprintf(b, "\n%s %s\n\n", level, s.Name)
	if !s.Section {
		facts := []string{s.Type}
		if len(s.Choices) > 0 {
			facts = append(facts, "one of "+strings.Join(s.Choices, ", "))
		}
		if u := s.unit(); u != "" {
			facts = append(facts, "in "+u)
		}
		if s.Default != "" {
			facts = append(facts, "default `"+s.Default+"`")
		}
		fmt.Fprintf(b, "*%s*\n\n", strings.Join(facts, "; "))
	}
	b.WriteString(s.Doc + "\n")
	if s.Why != "" {
		b.WriteString("\n" + s.Why + "\n")
	}
}

// Schema is a JSON schema (draft 2020-12) of the configuration.
func Schema() ([]byte, error) {
	settings, err := Settings()
	if err != nil {
		return nil, err
	}
	root := object()
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "Postroad configuration"
	sections := map[string]map[string]any{"": root}
	for _, s := range settings {
		section, name := "", s.Name
		if cut := strings.LastIndexByte(s.Name, '.'); cut >= 0 {
			section, name = s.Name[:cut], s.Name[cut+1:]
		}
		value := s.schema()
		sections[section]["properties"].(map[string]any)[name] = value
		switch {
		case s.Section && s.Items:
			sections[s.Name+"[]"] = value["items"].(map[string]any)
		case s.Section:
			sections[s.Name] = value
		}
	}
	out, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("print schema: %w", err)
	}
	return append(out, '\n'), nil
}

func object() map[string]any {
	return map[string]any{"type": "object", "additionalProperties": false, "properties": map[string]any{}}
}

func (s Setting) schema() map[string]any {
	var value map[string]any
	switch strings.TrimPrefix(s.Type, "list of ") {
	case "section":
		value = object()
	case "number":
		value = map[string]any{"type": "integer"}
	case "true or false":
		value = map[string]any{"type": "boolean"}
	case "size":
		value = map[string]any{"type": []string{"string", "integer"}}
	default:
		value = map[string]any{"type": "string"}
	}
	if len(s.Choices) > 0 {
		value["enum"] = s.Choices
	}
	if s.kind == typeSchedule {
		value = map[string]any{"type": []string{"string", "array"}, "items": value}
	}
	if s.Items {
		value = map[string]any{"type": "array", "items": value}
	}
	value["description"] = strings.TrimSpace(s.Doc + " " + s.Why)
	if s.Default != "" && !s.Items {
		value["default"] = s.Default
	}
	return value
}
