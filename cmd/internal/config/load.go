package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"strconv"

	"go.yaml.in/yaml/v4"
)

// maxFile bounds a configuration file.
const maxFile = 1 << 20

// Load reads and checks a configuration file ("": there is none), and the environment, which takes its place setting by setting. Everything
// that is wrong comes back as Errors; the files that the settings name are looked at by CheckFiles.
func Load(path string) (*Config, error) {
	if path == "" {
		return parse("", nil, os.Environ())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("read configuration: %s is larger than 1 MiB: is it the right file?", path)
	}
	return parse(path, text, os.Environ())
}

// Parse reads and checks a configuration; file is its name in messages.
func Parse(file string, text []byte) (*Config, error) { return parse(file, text, nil) }

func parse(file string, text []byte, variables []string) (*Config, error) {
	c := Default()
	c.source = &source{file: file, lines: make(map[string]int), variables: make(map[string]string)}
	d := decoder{faults: faults{source: c.source}}
	root, fault := parseYAML(text)
	if fault != nil {
		d.faults.addAt(fault.Line, "", "%s", fault.Text)
		return nil, d.faults.list
	}
	if root != nil {
		d.fill(reflect.ValueOf(&c).Elem(), root, "")
	}
	d.environment(&c, variables)
	if !c.source.given("delivery.delay_notice") && c.Delivery.DelayNotice >= c.Delivery.MaxAge {
		c.Delivery.DelayNotice = 0 // mail that is tried for so short needs no notice
	}
	c.Signer.inherit(c.source)
	for _, fault := range c.check() {
		if !d.faults.concern(fault.Setting) {
			d.faults.list = append(d.faults.list, fault)
		}
	}
	if len(d.faults.list) > 0 {
		return nil, sorted(d.faults.list)
	}
	return &c, nil
}

// parseYAML gives the content of the only document, nil when there is none.
func parseYAML(text []byte) (*yaml.Node, *Error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var document, second yaml.Node
	if err := dec.Decode(&document); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, syntaxError(err)
	}
	switch err := dec.Decode(&second); {
	case err == nil:
		return nil, &Error{Line: second.Line, Text: "a second document begins here: keep everything in one"}
	case !errors.Is(err, io.EOF):
		return nil, syntaxError(err)
	}
	if len(document.Content) == 0 {
		return nil, nil
	}
	return document.Content[0], nil
}

var yamlLine = regexp.MustCompile(`(?s)line (\d+)(?:,? column (\d+))?: *(.*)`)

// syntaxError takes the line out of the library's text.
func syntaxError(err error) *Error {
	text := err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ := strconv.Atoi(m[1])
		return &Error{Line: line, Text: "this is not YAML: " + m[3]}
	}
	return &Error{Text: "this is not YAML: " + text}
}
