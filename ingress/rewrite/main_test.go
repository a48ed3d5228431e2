package rewrite

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"postroad/queue/address"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// parse makes Rules of two texts.
func parse(rules, aliases string, files Files) (*Rules, error) {
	if rules != "" {
		files.Rules = "rules.yaml"
	}
	if aliases != "" {
		files.Aliases = "aliases"
	}
	return compile(files, texts{rules: []byte(rules), aliases: []byte(aliases)})
}

// own is what most tests complete with.
var own = Files{OwnDomain: "own.test", Delimiter: "+"}

func mustParse(t testing.TB, rules, aliases string) *Rules {
	t.Helper()
	r, err := parse(rules, aliases, own)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustPath(t testing.TB, s string) address.Path {
	t.Helper()
	p, err := address.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func writeFile(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// crlf ends the lines of a header as they come over SMTP.
func crlf(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", "\r\n")) }

// value is what a counter or gauge stands at.
func value(t testing.TB, m prometheus.Metric) float64 {
	t.Helper()
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.GetCounter().GetValue() + out.GetGauge().GetValue()
}
