package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// ClientManifest is what a file wants of one client. What it does not say has its default: it is the whole state, not a change.
type ClientManifest struct {
	Name         string   `yaml:"name"`
	Class        string   `yaml:"class"`
	Disabled     bool     `yaml:"disabled"`
	Networks     []string `yaml:"networks"`
	Senders      []string `yaml:"senders"`
	Certificates []string `yaml:"certificates"`
	NoPassword   bool     `yaml:"no_password"` // make none when the client is created

	source *source
	line   int
}

// Fault is something that is wrong with a setting of the manifest, at its line.
func (m *ClientManifest) Fault(setting, format string, args ...any) Error {
	line := m.source.line(setting)
	if line == 0 {
		line = m.line
	}
	return Error{File: m.source.file, Line: line, Setting: setting, Text: fmt.Sprintf(format, args...)}
}

// Says tells whether the manifest has a setting.
func (m *ClientManifest) Says(setting string) bool { return m.source.given(setting) }

// Where is the place of the manifest: file:line.
func (m *ClientManifest) Where() string { return fmt.Sprintf("%s:%d", m.source.file, m.line) }

// maxManifests bounds the files of a directory.
const maxManifests = 50_000

// LoadClientManifests reads files, and the .yaml and .yml files of directories. What is wrong in them comes back as Errors, with all of it.
func LoadClientManifests(paths []string) ([]ClientManifest, error) {
	var all []ClientManifest
	var faults Errors
	for _, path := range paths {
		names, err := manifestFiles(path)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			text, err := readManifest(name)
			if err != nil {
				return nil, err
			}
			found, err := ParseClientManifests(name, text)
			if list, ok := errors.AsType[Errors](err); ok {
				faults = append(faults, list...)
			}
			all = append(all, found...)
		}
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return all, nil
}

// manifestFiles are the files that a path stands for, in order.
func manifestFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	var names []string
	for _, e := range entries {
		isManifest := slices.Contains([]string{".yaml", ".yml"}, filepath.Ext(e.Name()))
		if isManifest && !e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, filepath.Join(path, e.Name()))
		}
	}
	if len(names) > maxManifests {
		return nil, fmt.Errorf("read manifests: %s holds %d files: at most %d", path, len(names), maxManifests)
	}
	return names, nil
}

func readManifest(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("read manifest: %s is larger than 1 MiB: is it the right file?", name)
	}
	return text, nil
}

// ParseClientManifests reads the documents of a file, one client in each; file is its name in messages. The error is Errors.
func ParseClientManifests(file string, text []byte) ([]ClientManifest, error) {
	var list []ClientManifest
	var wrong Errors
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var document yaml.Node
		err := dec.Decode(&document)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			fault := syntaxError(err)
			fault.File = file
			wrong = append(wrong, *fault)
			break
		}
		if len(document.Content) == 0 || isNull(document.Content[0]) {
			continue // nothing between two lines of ---
		}
		root := document.Content[0]
		m := ClientManifest{source: &source{file: file, lines: make(map[string]int)}, line: root.Line}
		d := decoder{faults: faults{source: m.source}}
		d.fill(reflect.ValueOf(&m).Elem(), root, "")
		if m.Name == "" && len(d.faults.list) == 0 {
			d.faults.addAt(root.Line, "name", "is missing: say which client this is")
		}
		wrong = append(wrong, d.faults.list...)
		list = append(list, m)
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return list, nil
}
