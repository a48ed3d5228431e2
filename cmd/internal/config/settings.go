package config

import (
	_ "embed" // the comments of config.go are the reference
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"strings"
	"time"
)

//go:embed config.go
var configSource string

//go:embed signing.go
var signingSource string

//go:embed retry.go
var retrySource string

//go:embed bounces.go
var bouncesSource string

//go:embed routes.go
var routesSource string

//go:embed tls.go
var tlsSource string

//go:embed sources.go
var sourcesSource string

//go:embed suppress.go
var suppressSource string

//go:embed bouncelimit.go
var bounceLimitSource string

// Setting is the reference of one setting.
type Setting struct {
	Name    string   // full, for example ingress.listeners[].address
	Type    string   // text, number, size, duration, yes/no, network, one of…, list of …, section
	Default string   // as one would write it; empty: none
	Choices []string // of a setting with fixed words
	Doc     string   // what it is
	Why     string   // why one would change it; may be empty
	Section bool     // has settings below it
	Items   bool     // is a list
	kind    reflect.Type
}

// Settings are all settings in the order of the structs.
func Settings() ([]Setting, error) {
	docs, err := comments()
	if err != nil {
		return nil, err
	}
	d := Default()
	var list []Setting
	collect(reflect.ValueOf(d), "", docs, &list)
	return list, nil
}

// comments reads the doc comment of every field from the source, by type and field name.
func comments() (map[string]string, error) {
	docs := make(map[string]string)
	for _, source := range []string{configSource, signingSource, retrySource, bouncesSource, routesSource, shapingSource, reactionsSource, tlsSource, sourcesSource, suppressSource, bounceLimitSource} {
		if err := readComments(docs, source); err != nil {
			return nil, err
		}
	}
	return docs, nil
}

func readComments(docs map[string]string, source string) error {
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", source, parser.ParseComments)
	if err != nil {
		return fmt.Errorf("read the reference of the settings: %w", err)
	}
	for _, decl := range file.Decls {
		general, ok := decl.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range general.Specs {
			t, ok := spec.(*ast.TypeSpec)
			if !ok {
				continue
			}
			docs[t.Name.Name] = general.Doc.Text()
			s, ok := t.Type.(*ast.StructType)
			if !ok {
				continue
			}
			for _, field := range s.Fields.List {
				for _, name := range field.Names {
					docs[t.Name.Name+"."+name.Name] = field.Doc.Text()
				}
			}
		}
	}
	return nil
}

func collect(v reflect.Value, section string, docs map[string]string, list *[]Setting) {
	t := v.Type()
	for i := range t.NumField() {
		field := t.Field(i)
		name := field.Tag.Get("yaml")
		if name == "" {
			continue
		}
		s := Setting{Name: join(section, name), kind: field.Type}
		s.Doc, s.Why = split(docs[t.Name()+"."+field.Name], field.Name, name)
		element := field.Type
		if element.Kind() == reflect.Slice {
			s.Items, element = true, element.Elem()
		}
		if isSection(element) {
			s.Section = true
			if s.Doc == "" {
				s.Doc, s.Why = split(docs[element.Name()], element.Name(), name)
			}
		} else {
			s.Default = oneLine(v.Field(i))
		}
		s.Type, s.Choices = typeName(element), choicesOf(element)
		if s.Items {
			s.Type = "list of " + s.Type
		}
		*list = append(*list, s)
		switch {
		case !s.Section:
		case s.Items:
			collect(itemDefault(element), s.Name+"[]", docs, list)
		default:
			collect(v.Field(i), s.Name, docs, list)
		}
	}
}

// itemDefault is what an item of a list is before its settings are read.
func itemDefault(t reflect.Type) reflect.Value {
	switch t {
	case typeListener:
		return reflect.ValueOf(defaultListener())
	case typeReaction:
		return reflect.ValueOf(defaultReaction())
	case typeShaping:
		return reflect.ValueOf(Shaping{Domains: []string{}, Sites: []string{}, MX: []string{}, Sources: []string{}})
	case typeRoute:
		return reflect.ValueOf(defaultRoute())
	case typePoolMember:
		return reflect.ValueOf(defaultPoolMember())
	case typeClass:
		return reflect.ValueOf(defaultClass())
	case typeSigning:
		return reflect.ValueOf(defaultSigningDomain())
	}
	return reflect.Zero(t)
}

// split divides a comment into what and why, and calls the setting by its name in the file.
func split(comment, goName, name string) (doc, why string) {
	var what []string
	for paragraph := range strings.SplitSeq(strings.TrimSpace(comment), "\n\n") {
		paragraph = strings.Join(strings.Fields(paragraph), " ")
		if strings.HasPrefix(paragraph, "Change it") {
			why = paragraph
			continue
		}
		what = append(what, paragraph)
	}
	doc = strings.Join(what, " ")
	if rest, ok := strings.CutPrefix(doc, goName+" "); ok {
		doc = name + " " + rest
	}
	return doc, why
}

// oneLine prints a default on one line.
func oneLine(v reflect.Value) string {
	if v.Kind() == reflect.Slice {
		items := make([]string, v.Len())
		for i := range items {
			items[i] = format(v.Index(i))
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	return format(v)
}

func typeName(t reflect.Type) string {
	if isSection(t) {
		return "section"
	}
	switch t {
	case typeSize:
		return "size"
	case typeDuration:
		return "duration"
	case typePrefix:
		return "network"
	}
	if choicesOf(t) != nil {
		return "word"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "number"
	}
	return "text"
}

func choicesOf(t reflect.Type) []string {
	if c, ok := reflect.Zero(t).Interface().(choice); ok {
		return c.choices()
	}
	return nil
}

// unit is what a number of this type counts.
func (s Setting) unit() string {
	switch {
	case s.kind == typeSize:
		return "octets, or with a unit: KiB, MiB, GiB"
	case s.kind == typeDuration, s.kind.Kind() == reflect.Slice && s.kind.Elem() == reflect.TypeFor[time.Duration]():
		return "s, m, h or d"
	}
	return ""
}
