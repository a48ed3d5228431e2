package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// A rule of its own is said; the general schedule is not, but in JSON.
func TestExplainRetry(t *testing.T) {
	dir := shortDir(t)
	file := writeFile(t, filepath.Join(dir, "c.yaml"), `data_dir: `+dir+`/data
delivery:
  retry_rules:
    - {domains: [example.com], schedule: "F,2h,15m; G,16h,1h,1.5; F,4d,6h"}
`)
	for _, tt := range []struct {
		args, want string
		has        bool
	}{
		{"alice@example.org bob@example.com", "tried again F,2h,15m; G,16h,1h,1.5; F,4d,6h; given up after 4d5h1m52s", true},
		{"alice@example.org bob@example.net", "tried again", false},
		{"<> bob@example.net", "tried again 1m, 5m, 15m, 1h, 4h; given up after 2d", true},
		{"--json alice@example.org bob@example.net", `"max_age":"5d"`, true},
	} {
		status, out, errs := command(t, append([]string{"explain", "-c", file}, strings.Fields(tt.args)...)...)
		if status != 0 || strings.Contains(out, tt.want) != tt.has {
			t.Errorf("%s: got %d\n%s%s\nwant %q: %v", tt.args, status, out, errs, tt.want, tt.has)
		}
	}
}
