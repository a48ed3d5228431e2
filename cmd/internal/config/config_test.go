package config

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"net/netip"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares got with a file, or writes the file.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (run with -update to accept):\n%s", path, d)
	}
}

func files(t *testing.T, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil || len(list) == 0 {
		t.Fatalf("no files %s: %v", pattern, err)
	}
	return list
}

var equal = cmp.Options{
	cmpopts.IgnoreUnexported(Config{}),
	cmpopts.EquateEmpty(),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func TestGood(t *testing.T) {
	for _, path := range files(t, "testdata/good/*.yaml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			c, err := Load(path)
			if err != nil {
				t.Fatal(err)
			}
			shown, err := c.Show()
			if err != nil {
				t.Fatal(err)
			}
			golden(t, path+".shown", shown)
			again, err := Parse("shown", []byte(shown))
			if err != nil {
				t.Fatalf("what Show printed cannot be read: %v\n%s", err, shown)
			}
			if d := cmp.Diff(c, again, equal); d != "" {
				t.Error(d)
			}
			if _, err := json.Marshal(c.Map()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestBad(t *testing.T) {
	for _, path := range files(t, "testdata/bad/*.yaml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			c, err := Load(path)
			if err == nil {
				t.Fatalf("got %+v, want errors", c)
			}
			golden(t, path+".err", err.Error()+"\n")
		})
	}
}

func TestDefaultsAreGood(t *testing.T) {
	c := Default()
	if err := c.Check(); err != nil {
		t.Error(err)
	}
	if got, want := c.SocketPath(), "postroad-data/ops.sock"; got != want {
		t.Errorf("got socket %s, want %s", got, want)
	}
	if got, want := c.SecretsDir(), "postroad-data/secrets"; got != want {
		t.Errorf("got secrets %s, want %s", got, want)
	}
}

func TestLoadUnreadable(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "missing.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want a missing file", err)
	}
	big := filepath.Join(t.TempDir(), "big.yaml")
	if err := os.WriteFile(big, []byte(strings.Repeat("#\n", maxFile)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(big); err == nil || !strings.Contains(err.Error(), "larger than 1 MiB") {
		t.Errorf("got %v, want a refusal of the size", err)
	}
}

func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "open.key")
	if err := os.WriteFile(key, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	text := "ingress:\n  listeners:\n    - tls: starttls\n      cert: " + dir + "/missing.pem\n      key: " + key + "\nsecrets:\n  dir: " + key + "\n"
	c, err := Parse("f.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := "f.yaml:4: ingress.listeners[0].cert: open " + dir + "/missing.pem: no such file or directory\n" +
		"f.yaml:5: ingress.listeners[0].key: " + key + " has mode 0644, so others can read it: chmod 0600 it\n" +
		"f.yaml:7: secrets.dir: " + key + " is no directory"
	if err := c.CheckFiles(); err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	small := Default()
	if err := small.CheckFiles(); err != nil {
		t.Errorf("defaults: %v", err)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "1": 1, "1B": 1, "10KiB": 10 << 10, "50 MiB": 50 << 20, "1.5GiB": 3 << 29, "2TiB": 2 << 40, "50MB": 50e6, "1kB": 1000,
	} {
		got, err := ParseSize(text)
		if err != nil || got != want {
			t.Errorf("%s: got %d, %v, want %d", text, got, err, want)
		}
		if back, err := ParseSize(got.String()); err != nil || back != got {
			t.Errorf("%s prints as %s, which reads as %d, %v", text, got, back, err)
		}
	}
	for _, text := range []string{"", "x", "-1", "-1KiB", "1e3", "0x10", "1.5", "NaN", "inf", "9EiB", "99999999999TiB", "10 gigs", "1KiBKiB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q: got %d, want an error", text, got)
		}
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0s": 0, "90s": 90 * time.Second, "5d": 120 * time.Hour, "1d12h": 36 * time.Hour, "1h30m": 90 * time.Minute, "1m30s": 90 * time.Second,
	} {
		got, err := parseDuration(text)
		if err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", text, got, err, want)
		}
		if back, err := parseDuration(formatDuration(want)); err != nil || back != want {
			t.Errorf("%v prints as %s, which reads as %v, %v", want, formatDuration(want), back, err)
		}
	}
	for _, text := range []string{"", "5", "-5m", "d", "1.5d", "5 m", "99999999d", "65000d65000d", "1d-1h1d"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("%q: got %v, want an error", text, got)
		}
	}
}

func TestEverySettingIsDescribed(t *testing.T) {
	settings, err := Settings()
	if err != nil {
		t.Fatal(err)
	}
	if len(settings) < 40 {
		t.Errorf("got %d settings, want all of them", len(settings))
	}
	for _, s := range settings {
		if s.Doc == "" {
			t.Errorf("%s has no description", s.Name)
		}
		last := s.Name[strings.LastIndexAny(s.Name, ".")+1:]
		if !s.Section && !strings.HasPrefix(s.Doc, last+" ") {
			t.Errorf("%s: the description does not begin with its name: %q", s.Name, s.Doc)
		}
	}
}

func TestReferencePageIsCurrent(t *testing.T) {
	page, err := Reference()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "../../../docs/configuration.md", page)
	if _, err := Parse("example", []byte(smallExample)); err != nil {
		t.Errorf("the example of the page: %v", err)
	}
}

func TestSchema(t *testing.T) {
	out, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Properties map[string]struct {
			Type       string
			Properties map[string]struct {
				Items struct {
					Properties map[string]struct{ Enum []string }
				}
			}
		}
	}
	if err := json.Unmarshal(out, &schema); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(strings.Fields(string(out)), ""), `"type":["string","array"]`) {
		t.Error("a schedule cannot be a list")
	}
	got := schema.Properties["ingress"].Properties["listeners"].Items.Properties["tls"].Enum
	if d := cmp.Diff([]string{"none", "starttls", "implicit"}, got); d != "" {
		t.Error(d)
	}
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/good/*.yaml", "testdata/bad/*.yaml"} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse("fuzz", text)
		if err != nil {
			if _, ok := errors.AsType[Errors](err); !ok {
				t.Fatalf("got %T, want Errors", err)
			}
			return
		}
		shown, err := c.Show()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse("shown", []byte(shown))
		if err != nil {
			t.Fatalf("what Show printed cannot be read: %v\n%s", err, shown)
		}
		if d := cmp.Diff(c, again, equal); d != "" {
			t.Error(d)
		}
	})
}
