package config

import (
	"fmt"
	"strings"
)

// Error is one thing that is wrong with a configuration.
type Error struct {
	File    string
	Line    int    // 0: not given in the file, or the file as a whole
	Setting string // for example delivery.routes[0].via; empty: the file as a whole
	Text    string // what is wrong and what to do
}

// Error prints file:line: setting: text.
func (e Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File + ":")
		if e.Line > 0 {
			fmt.Fprintf(&b, "%d:", e.Line)
		}
		b.WriteByte(' ')
	}
	if e.Setting != "" {
		b.WriteString(e.Setting + ": ")
	}
	b.WriteString(e.Text)
	return b.String()
}

// Errors are all things that are wrong, in the order of the file.
type Errors []Error

// Error prints one line for each.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, one := range e {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// source knows where each setting stands.
type source struct {
	file      string
	lines     map[string]int    // by setting
	variables map[string]string // of the environment, by setting
}

// given tells whether a setting was given.
func (s *source) given(setting string) bool {
	return s != nil && (s.lines[setting] > 0 || s.variables[setting] != "")
}

// line finds the line of a setting, or of the nearest thing around it that was given.
func (s *source) line(setting string) int {
	if s == nil {
		return 0
	}
	for {
		if n, ok := s.lines[setting]; ok {
			return n
		}
		cut := strings.LastIndexAny(setting, ".[")
		if cut < 0 {
			return 0
		}
		setting = setting[:cut]
	}
}

// faults gathers errors.
type faults struct {
	source *source
	list   Errors
}

func (f *faults) add(setting, format string, args ...any) {
	if name := f.source.variable(setting); name != "" {
		f.list = append(f.list, Error{File: origin(name), Setting: setting, Text: fmt.Sprintf(format, args...)})
		return
	}
	f.addAt(f.source.line(setting), setting, format, args...)
}

func (f *faults) addAt(line int, setting, format string, args ...any) {
	file := ""
	if f.source != nil {
		file = f.source.file
	}
	f.list = append(f.list, Error{File: file, Line: line, Setting: setting, Text: fmt.Sprintf(format, args...)})
}

// concern tells whether there is a fault in a setting, around it or below it already: what follows from it is no news.
func (f *faults) concern(setting string) bool {
	for _, one := range f.list {
		if within(one.Setting, setting) || within(setting, one.Setting) {
			return true
		}
	}
	return false
}

func within(inner, outer string) bool {
	rest, ok := strings.CutPrefix(inner, outer)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}
