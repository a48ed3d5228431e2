package config

import (
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// variablePrefix begins the names of environment variables that are settings: POSTROAD__DELIVERY__MAX_AGE is delivery.max_age. Two underscores
// stand for each dot, so that what a container platform sets by itself for a service named postroad (POSTROAD_PORT) is none.
const variablePrefix = "POSTROAD__"

// environment lets variables (NAME=value) take the place of what the file says. An empty one says nothing.
func (d *decoder) environment(c *Config, variables []string) {
	leaves := make(map[string]reflect.Value)
	names := make(map[string]int)
	leavesOf(reflect.ValueOf(c).Elem(), "", func(setting string, v reflect.Value) {
		leaves[variableOf(setting)], names[variableOf(setting)] = v, 0
	})
	for _, variable := range slices.Sorted(slices.Values(variables)) {
		name, text, _ := strings.Cut(variable, "=")
		if !strings.HasPrefix(name, variablePrefix) || text == "" {
			continue
		}
		setting := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, variablePrefix), "__", "."))
		one := decoder{faults: faults{source: &source{file: origin(name), lines: make(map[string]int)}}}
		if v, ok := leaves[name]; ok {
			one.fillText(v, text, setting)
			d.faults.source.variables[setting] = name
		} else {
			one.faults.addAt(0, "", "there is no such setting%s", nearest(name, names))
		}
		for _, fault := range one.faults.list {
			fault.Line = 0
			d.faults.list = append(d.faults.list, fault)
		}
	}
}

// fillText sets v from the value of a variable: as it is where one value is wanted, YAML in brackets or words between commas for a list.
func (d *decoder) fillText(v reflect.Value, text, setting string) {
	isList := v.Kind() == reflect.Slice && v.Type() != typeSchedule
	switch {
	case strings.HasPrefix(text, "[") && v.Kind() == reflect.Slice:
		n, fault := parseYAML([]byte(text))
		if fault != nil {
			d.faults.addAt(0, setting, "%s", fault.Text)
			return
		}
		d.fill(v, n, setting)
	case isList && isSection(v.Type().Elem()):
		d.faults.addAt(0, setting, "is a list of sections: write [{name: value, …}, …]")
	case isList:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for word := range strings.SplitSeq(text, ",") {
			n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: strings.TrimSpace(word)})
		}
		d.fill(v, n, setting)
	default:
		d.fill(v, &yaml.Node{Kind: yaml.ScalarNode, Value: text}, setting)
	}
}

// leavesOf calls fn with each setting that is no section.
func leavesOf(v reflect.Value, section string, fn func(setting string, v reflect.Value)) {
	if v.Kind() != reflect.Struct || v.Type() == typePrefix {
		fn(section, v)
		return
	}
	for name, i := range fieldsOf(v.Type()) {
		leavesOf(v.Field(i), join(section, name), fn)
	}
}

// variableOf is the name of the variable for a setting.
func variableOf(setting string) string {
	return variablePrefix + strings.ToUpper(strings.ReplaceAll(setting, ".", "__"))
}

func origin(variable string) string { return "environment variable " + variable }

// variable is the one that gave a setting, or something around it.
func (s *source) variable(setting string) string {
	if s == nil {
		return ""
	}
	for {
		if name, ok := s.variables[setting]; ok {
			return name
		}
		cut := strings.LastIndexAny(setting, ".[")
		if cut < 0 {
			return ""
		}
		setting = setting[:cut]
	}
}
