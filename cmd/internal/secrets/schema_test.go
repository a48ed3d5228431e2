package secrets

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"postroad/cmd/internal/secrets/authority"
	"postroad/ingress/account"
)

func fieldsOf(t *testing.T, kind string) []string {
	t.Helper()
	var names []string
	for _, k := range Schema() {
		if k.Name != kind {
			continue
		}
		for _, f := range k.Fields {
			names = append(names, f.Name)
		}
	}
	if len(names) == 0 {
		t.Fatalf("there is no kind %s", kind)
	}
	slices.Sort(names)
	return names
}

// TestSchemaOfClients holds the schema against the decoder, which names the fields that it knows when it meets one that it does not.
func TestSchemaOfClients(t *testing.T) {
	_, err := account.Decode("a", "", map[string]any{"x": 1, "passwords": []any{map[string]any{"x": 1}}})
	faults, ok := errors.AsType[account.Faults](err)
	if !ok {
		t.Fatal(err)
	}
	var got []string
	for _, f := range faults {
		m := regexp.MustCompile(`here can be: ([^)]*)\)`).FindStringSubmatch(f.Text)
		if m == nil {
			continue
		}
		for name := range strings.SplitSeq(m[1], ", ") {
			if strings.HasPrefix(f.Field, "passwords[") {
				name = "passwords[]." + name
			}
			got = append(got, name)
		}
	}
	slices.Sort(got)
	if want := fieldsOf(t, KindClients); !slices.Equal(got, want) {
		t.Errorf("the decoder knows %v\nthe schema tells of %v", got, want)
	}
}

// TestSchemaOfKeys holds the schema against the source of what reads and writes DKIM keys in Vault.
func TestSchemaOfKeys(t *testing.T) {
	found := map[string]bool{}
	note := func(e ast.Expr) {
		if lit, is := e.(*ast.BasicLit); is && lit.Kind == token.STRING {
			name, _ := strconv.Unquote(lit.Value)
			found[name] = true
		}
	}
	for _, file := range []string{"record.go", "store.go"} {
		syntax, err := parser.ParseFile(token.NewFileSet(), filepath.Join("../../../signer/vault", file), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr: // text("state")
				if f, is := n.Fun.(*ast.Ident); is && f.Name == "text" && len(n.Args) == 1 {
					note(n.Args[0])
				}
			case *ast.IndexExpr: // s.Data["bits"], data["private_key"]
				name := ""
				switch x := n.X.(type) {
				case *ast.SelectorExpr:
					name = x.Sel.Name
				case *ast.Ident:
					name = x.Name
				}
				if strings.EqualFold(name, "data") {
					note(n.Index)
				}
			case *ast.CompositeLit: // map[string]any{"state": …}
				m, is := n.Type.(*ast.MapType)
				if !is {
					break
				}
				if value, is := m.Value.(*ast.Ident); !is || value.Name != "any" {
					break
				}
				for _, e := range n.Elts {
					if pair, is := e.(*ast.KeyValueExpr); is {
						note(pair.Key)
					}
				}
			}
			return true
		})
	}
	var got []string
	for name := range found {
		got = append(got, name)
	}
	slices.Sort(got)
	if want := fieldsOf(t, KindDKIM); !slices.Equal(got, want) {
		t.Errorf("the code knows %v\nthe schema tells of %v", got, want)
	}
}

// TestSchemaOfCertificates holds the schema against what is written, and against what happens when a field is missing.
func TestSchemaOfCertificates(t *testing.T) {
	s, v := inVault(t)
	first, err := authority.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	next, err := first.Successor(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.StoreAuthority(t.Context(), "x", next, Version{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.StorePair(t.Context(), "x", selfSigned(t, "a.example"), Version{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.MakeAccountKey(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	for kind, read := range map[string]func() error{
		KindACME:      func() error { _, err := s.AccountKey(t.Context(), "x"); return err },
		KindAuthority: func() error { _, _, err := s.Authority(t.Context(), "x", true); return err },
		KindTLS:       func() error { _, _, err := s.Certificate("x").Source.Pair(t.Context()); return err },
	} {
		path := "postroad/" + kind + "/x"
		data := v.Data(path)[0]
		var got []string
		for name := range data {
			got = append(got, name)
		}
		slices.Sort(got)
		if want := fieldsOf(t, kind); !slices.Equal(got, want) {
			t.Errorf("%s: written are %v\nthe schema tells of %v", kind, got, want)
		}
		for _, k := range Schema() {
			if k.Name != kind {
				continue
			}
			for _, f := range k.Fields {
				less := map[string]any{}
				for name, value := range data {
					if name != f.Name {
						less[name] = value
					}
				}
				v.Put(path, less)
				if err := read(); (err != nil) != f.Required {
					t.Errorf("%s without %s: got %v, but required is %t", kind, f.Name, err, f.Required)
				}
			}
		}
	}
}

// TestExamples: they name only fields that there are, and all that are required.
func TestExamples(t *testing.T) {
	for _, k := range Schema() {
		named := map[string]bool{}
		for line := range strings.SplitSeq(k.Example, "\n") {
			m := regexp.MustCompile(`^(  - |    )?([a-z_0-9]+):`).FindStringSubmatch(line)
			if m == nil {
				continue
			}
			name := m[2]
			if m[1] != "" {
				name = "passwords[]." + name
			}
			named[name] = true
			if !slices.ContainsFunc(k.Fields, func(f Field) bool { return f.Name == name }) {
				t.Errorf("%s: the example has %s", k.Name, name)
			}
		}
		for _, f := range k.Fields {
			if f.Required && !named[f.Name] {
				t.Errorf("%s: the example lacks %s", k.Name, f.Name)
			}
			if f.Meaning == "" || f.Form == "" {
				t.Errorf("%s: %s is not described", k.Name, f.Name)
			}
		}
	}
}

// TestSchemaOfPolicies holds the readers in the schema against the policies of deploy/vault, and against what permits more than they say.
func TestSchemaOfPolicies(t *testing.T) {
	policies, err := filepath.Glob("../../../deploy/vault/*.hcl")
	if err != nil || len(policies) < 4 {
		t.Fatalf("got policies %v, %v", policies, err)
	}
	for _, file := range policies {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		role := strings.TrimSuffix(filepath.Base(file), ".hcl")
		if role == "admin" || strings.Contains(role, "-") {
			continue // of people, and what adds to a role
		}
		for _, k := range Schema() {
			may := strings.Contains(string(text), fmt.Sprintf("@prefix@/%s/*", k.Name))
			if want := slices.Contains(k.Readers, role); may != want {
				t.Errorf("%s reads %s/: got %t, but the schema says %t", role, k.Name, may, want)
			}
		}
		for _, wide := range []string{"@prefix@/*", "@prefix@/+", "@mount@/*", `"*"`} {
			if strings.Contains(string(text), wide) {
				t.Errorf("%s may read all: %s", role, wide)
			}
		}
	}
}
