package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestClientManifests(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.yaml":     "# the web servers\n---\nname: web1\nclass: host\nnetworks: [10.0.0.0/8]\n---\n---\nname: web2\ndisabled: true\n",
		"b.yml":      "name: grafana\nsenders:\n  - '@example.com'\ncertificates: [g.example.com]\nno_password: true\n",
		".c.yaml":    "not: read\n",
		"empty.yaml": "",
		"README":     "not read",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := LoadClientManifests([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	want := []ClientManifest{
		{Name: "web1", Class: "host", Networks: []string{"10.0.0.0/8"}},
		{Name: "web2", Disabled: true},
		{Name: "grafana", Senders: []string{"@example.com"}, Certificates: []string{"g.example.com"}, NoPassword: true},
	}
	if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(ClientManifest{}), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for i, want := range []string{"a.yaml:3", "a.yaml:8", "b.yml:1"} {
		if got[i].Where() != filepath.Join(dir, want) {
			t.Errorf("got %s, want %s", got[i].Where(), want)
		}
	}
	if f := got[0].Fault("networks[0]", "is %s", "bad"); f.Error() != filepath.Join(dir, "a.yaml")+":5: networks[0]: is bad" {
		t.Errorf("got %s", f)
	}
	if f := got[1].Fault("class", "is bad"); f.Line != 8 {
		t.Errorf("got line %d for what is not given, want that of the manifest", f.Line)
	}
}

func TestBadClientManifests(t *testing.T) {
	for text, want := range map[string]string{
		"name: a\nclas: x\n":                       "f:2: clas: there is no such setting; did you mean class?",
		"class: x\n":                               "f:1: name: is missing",
		"name: a\n---\nname: b\nname: c\n":         "f:4: name: is given twice, first in line 3",
		"name: a\n---\n- b\n":                      "f:3: must be a section of settings, got a list",
		"name: a\ndisabled: maybe\n":               `f:2: disabled: "maybe" is neither true nor false`,
		"name: a\nnetworks: 10.0.0.0/8\n":          "f:2: networks: must be a list",
		"name: a\nnetworks:\n":                     "f:2: networks: has no value",
		"name: &x a\n":                             "f:1: name: anchors and aliases are not read here",
		"name: a\n---\nname: [b\n":                 "this is not YAML",
		"name: a\npassword: secret\n":              "f:2: password: there is no such setting",
		"name: a\nnetworks: [{a: b}]\nclass: []\n": "f:3: class: must be one value",
	} {
		list, err := ParseClientManifests("f", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v, want %s", text, list, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error shows what it should not: %v", text, err)
		}
	}
	if _, err := LoadClientManifests([]string{t.TempDir() + "/none"}); err == nil {
		t.Error("got no error for a file that is not there")
	}
}

func FuzzClientManifests(f *testing.F) {
	for _, text := range []string{"name: a\n---\nname: b\n", "name: [a", "- a", "---\n---\n", "name: *a", "{name: a, networks: [x]}"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := ParseClientManifests("f", text)
		if err != nil && list != nil {
			t.Errorf("got %v and %v, want one of them", list, err)
		}
		for _, m := range list {
			if m.Name == "" || m.line < 1 {
				t.Errorf("got %+v, want a name and a line", m)
			}
		}
	})
}
