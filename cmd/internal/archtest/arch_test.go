package archtest

import (
	"bytes"
	"cmp"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module   = "postroad"
	maxLines = 600
)

// file is one Go file of the module.
type file struct {
	name    string // from the root of the module, with slashes
	dir     string // its package's, "." for the root
	test    bool
	imports []string
	lines   int
	syntax  *ast.File
}

// module files, parsed once for all tests.
func load(t *testing.T) []file {
	t.Helper()
	root := "../../.."
	var files []file
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if p != root && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := parse(root, p)
		files = append(files, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 50 {
		t.Fatalf("got %d files: this is not the module", len(files))
	}
	return files
}

func parse(root, p string) (file, error) {
	rel, err := filepath.Rel(root, p)
	if err != nil {
		return file{}, err
	}
	text, err := os.ReadFile(p)
	if err != nil {
		return file{}, err
	}
	syntax, err := parser.ParseFile(token.NewFileSet(), p, text, parser.ParseComments)
	if err != nil {
		return file{}, err
	}
	f := file{
		name:   filepath.ToSlash(rel),
		dir:    path.Dir(filepath.ToSlash(rel)),
		test:   strings.HasSuffix(rel, "_test.go"),
		lines:  bytes.Count(text, []byte("\n")),
		syntax: syntax,
	}
	for _, spec := range syntax.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return file{}, err
		}
		f.imports = append(f.imports, name)
	}
	return f, nil
}

// below tells whether dir is one of the trees, or inside one.
func below(dir string, trees ...string) bool {
	for _, tree := range trees {
		if dir == tree || strings.HasPrefix(dir, tree+"/") {
			return true
		}
	}
	return false
}

// inModule gives the directory of a package of this module.
func inModule(imported string) (string, bool) {
	return strings.CutPrefix(imported, module+"/")
}

// TestRolesKnowOnlyTheQueue holds the dependency shape: queue imports no other part, roles import queue and never each
// other, only cmd wires. It holds for tests too.
func TestRolesKnowOnlyTheQueue(t *testing.T) {
	allowed := map[string][]string{
		"queue":    {"queue"},
		"ingress":  {"ingress", "queue"},
		"signer":   {"signer", "queue"},
		"delivery": {"delivery", "queue"},
		"cmd":      {"cmd", "queue", "ingress", "signer", "delivery"},
	}
	for _, f := range load(t) {
		part, _, _ := strings.Cut(f.dir, "/")
		if part == "deploy" {
			continue
		}
		trees, known := allowed[part]
		if !known {
			t.Errorf("%s: %s is no part of the design: packages lie below queue, ingress, signer, delivery or cmd", f.name, f.dir)
			continue
		}
		for _, imported := range f.imports {
			if dir, ours := inModule(imported); ours && !below(dir, trees...) {
				t.Errorf("%s imports %s: %s may know %v only", f.name, imported, part, trees)
			}
		}
	}
}

// TestEmbeddedStoreIsWired keeps the parts of the queue from knowing how it is started: only cmd and tests do.
func TestEmbeddedStoreIsWired(t *testing.T) {
	for _, f := range load(t) {
		if f.test || below(f.dir, "cmd", "queue/embedded") {
			continue
		}
		if slices.Contains(f.imports, module+"/queue/embedded") {
			t.Errorf("%s imports queue/embedded: only cmd decides where the queue is", f.name)
		}
	}
}

// TestConfigurationStaysInCmd: roles take plain Options. Rules for addresses are data of their own, which change while it runs.
func TestConfigurationStaysInCmd(t *testing.T) {
	for _, f := range load(t) {
		for _, imported := range f.imports {
			if strings.HasPrefix(imported, "go.yaml.in/") && f.dir != "cmd/internal/config" && f.dir != "ingress/rewrite" {
				t.Errorf("%s imports %s: only cmd/internal/config and ingress/rewrite read YAML", f.name, imported)
			}
		}
	}
}

// TestLibrariesHaveTheirPlace keeps what is hard to replace in one place each.
func TestLibrariesHaveTheirPlace(t *testing.T) {
	rules := []struct {
		library string
		trees   []string // where it may be imported
		tests   bool     // and in tests everywhere
		why     string
	}{
		{"github.com/hashicorp/vault/api", []string{"signer/vault"}, false, "one package speaks to Vault"},
		{"github.com/nats-io/nats-server", []string{"queue/embedded"}, true, "one package runs the server"},
		{"github.com/miekg/dns", []string{"delivery"}, false, "only delivery asks the DNS, and the library will be replaced"},
		{"github.com/nats-io", []string{"queue", "cmd/internal"}, true, "roles never see a subject or a sequence"},
		{"github.com/emersion/go-smtp", []string{"ingress", "delivery/smtpc"}, true, "the server and the client have their guards there"},
		{"github.com/alecthomas/kong", []string{"cmd"}, false, "the command line is cmd's"},
		{"net/http/pprof", nil, false, "it registers itself where everybody can see it"},
		{"github.com/stretchr/testify", nil, false, "the standard library and cmp are enough"},
	}
	for _, f := range load(t) {
		for _, imported := range f.imports {
			for _, r := range rules {
				if !below(imported, r.library) || below(f.dir, r.trees...) || r.tests && f.test {
					continue
				}
				t.Errorf("%s imports %s, which belongs to %v: %s", f.name, imported, r.trees, r.why)
			}
		}
	}
}

func TestPackagesAreDescribed(t *testing.T) {
	described := make(map[string]bool)
	for _, f := range load(t) {
		if f.test {
			continue
		}
		described[f.dir] = described[f.dir] || len(f.syntax.Doc.Text()) > 40
	}
	for dir, ok := range described {
		if !ok {
			t.Errorf("package %s has no comment that says what it does", dir)
		}
	}
}

func TestFilesAreShort(t *testing.T) {
	for _, f := range load(t) {
		if f.lines > maxLines {
			t.Errorf("%s has %d lines, at most %d: split it by what its parts do", f.name, f.lines, maxLines)
		}
	}
}

// TestNothingIsSkipped: a test that cannot run fails; checks that need other programs are not Go tests.
func TestNothingIsSkipped(t *testing.T) {
	for _, f := range load(t) {
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			selector, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			receiver, ok := selector.X.(*ast.Ident)
			if ok && f.test && slices.Contains([]string{"t", "b", "f", "tb"}, receiver.Name) && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, selector.Sel.Name) {
				t.Errorf("%s calls %s.%s", f.name, receiver.Name, selector.Sel.Name)
			}
			return true
		})
	}
}

// TestNoHiddenStart: nothing happens by importing a package.
func TestNoHiddenStart(t *testing.T) {
	for _, f := range load(t) {
		for _, decl := range f.syntax.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s has an init function", f.name)
			}
		}
		for _, spec := range f.syntax.Imports {
			if spec.Name != nil && spec.Name.Name == "_" && spec.Path.Value != `"embed"` {
				t.Errorf("%s imports %s for its side effects", f.name, spec.Path.Value)
			}
		}
	}
}

// TestGoroutinesAreWatched: every package with tests looks for goroutines that nobody waits for.
func TestGoroutinesAreWatched(t *testing.T) {
	starts, watched, tested := make(map[string]string), make(map[string]bool), make(map[string]bool)
	for _, f := range load(t) {
		if f.test {
			tested[f.dir] = true
			watched[f.dir] = watched[f.dir] || slices.Contains(f.imports, "go.uber.org/goleak")
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			if _, ok := n.(*ast.GoStmt); ok {
				starts[f.dir] = f.name
			}
			return true
		})
	}
	for dir, name := range starts {
		if !tested[dir] {
			t.Errorf("%s starts goroutines and the package has no tests", name)
		} else if !watched[dir] {
			t.Errorf("%s starts goroutines and no TestMain of the package uses goleak", name)
		}
	}
}

// TestConformanceListsEveryRFC: who reads docs/conformance.md sees all that the code goes by.
func TestConformanceListsEveryRFC(t *testing.T) {
	text, err := os.ReadFile("../../../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	cited := regexp.MustCompile(`RFC (\d{3,5})`)
	missing := make(map[string]string)
	for _, f := range load(t) {
		if f.test {
			continue
		}
		for _, group := range f.syntax.Comments {
			for _, m := range cited.FindAllStringSubmatch(group.Text(), -1) {
				if !regexp.MustCompile(`\b` + m[1] + `\b`).MatchString(page) {
					missing[m[1]] = f.name
				}
			}
		}
	}
	for rfc, name := range missing {
		t.Errorf("%s cites RFC %s, which docs/conformance.md does not list", name, rfc)
	}
}

// TestRowsHaveTheirTests: docs/conformance.md names a test for every row of the sending side, and each of these tests is there.
func TestRowsHaveTheirTests(t *testing.T) {
	text, err := os.ReadFile("../../../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	tests := make(map[string]bool)   // directory.function
	sources := make(map[string]bool) // directory.row of a case
	row := regexp.MustCompile(`"([A-Z]\d-\d+)\b`)
	for _, f := range load(t) {
		if !f.test {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				tests[f.dir+"."+n.Name.Name] = true
			case *ast.BasicLit:
				if m := row.FindStringSubmatch(n.Value); m != nil {
					sources[f.dir+"."+m[1]] = true
				}
			}
			return true
		})
	}
	for _, m := range regexp.MustCompile("`([a-z/]+)\\.(Test\\w+)(?:/([\\w-]+))?`").FindAllStringSubmatch(page, -1) {
		dir, name, part := m[1], m[2], m[3]
		if !tests[dir+"."+name] {
			t.Errorf("docs/conformance.md names %s.%s, which is not there", dir, name)
		}
		dialogues, err := filepath.Glob("../../../" + dir + "/testdata/dialogue/" + part + "*")
		if err != nil {
			t.Fatal(err)
		}
		if part != "" && !sources[dir+"."+part] && (name != "TestDialogue" || len(dialogues) == 0) {
			t.Errorf("docs/conformance.md names %s.%s/%s, and there is no such case", dir, name, part)
		}
	}
	part := map[int]string{44: "E3", 53: "E4", 67: "E5", 74: "E6"}
	for n, e := 44, ""; n <= 84; n++ {
		e = cmp.Or(part[n], e)
		line := regexp.MustCompile(`(?m)^\| ` + e + `-` + strconv.Itoa(n) + ` \|.*Test.*$`)
		if !line.MatchString(page) {
			t.Errorf("docs/conformance.md names no test for row %s-%d", e, n)
		}
	}
}
