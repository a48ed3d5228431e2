package rewrite

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the expected faults again")

// TestFaults reads the files of testdata/bad: NAME.yaml or NAME.aliases, with what is said about it in NAME.err.
func TestFaults(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*")
	if err != nil {
		t.Fatal(err)
	}
	tested := 0
	for _, file := range files {
		if strings.HasSuffix(file, ".err") {
			continue
		}
		tested++
		t.Run(filepath.Base(file), func(t *testing.T) {
			files := own
			switch filepath.Ext(file) {
			case ".yaml":
				files.Rules = file
			default:
				files.Aliases, files.Rules = file, "testdata/alias-domains.yaml"
			}
			_, err := Load(files)
			if _, ok := errors.AsType[Faults](err); !ok {
				t.Fatalf("got %v, want faults", err)
			}
			got := err.Error() + "\n"
			if *update {
				if err := os.WriteFile(file+".err", []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file + ".err")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if tested < 8 {
		t.Errorf("got %d files, want at least 8", tested)
	}
}

func TestFilesThatAreNotThere(t *testing.T) {
	_, err := Load(Files{Rules: "testdata/none.yaml", Aliases: "testdata"})
	want := "testdata/none.yaml: no such file or directory\ntestdata: is a directory"
	if err == nil || !strings.HasPrefix(err.Error(), "testdata/none.yaml: no such file or directory\ntestdata: ") {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestEmptyFiles(t *testing.T) {
	for _, text := range []string{" ", "# nothing\n", "---\n", "canonical:\n", "canonical: []\n", "alias_domains:\ncanonical:\n"} {
		if _, err := parse(text, "# nothing\n\n", own); err != nil {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

func FuzzFiles(f *testing.F) {
	f.Add(canonical, aliasFile)
	f.Add("alias_domains: [a.test]\ncanonical: [{match: 'a', to: '$1'}]", "a: b\n c\n@d: \"e f\"@g")
	f.Fuzz(func(t *testing.T, rules, aliases string) {
		r, err := parse(rules, aliases, own)
		if (r == nil) == (err == nil) {
			t.Fatalf("got %v and %v", r, err)
		}
		r.Lint()
	})
}
