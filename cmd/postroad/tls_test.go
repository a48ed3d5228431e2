package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestS1_1_EnableClient: what is the default is good as it is; what somebody has set is shown with what it would have to be, and left alone.
func TestS1_1_EnableClient(t *testing.T) {
	dir := shortDir(t)
	routes := writeFile(t, filepath.Join(dir, "routes.yaml"), "routes:\n  - {name: inner, domains: [issue.example.org], via: \"smtp:[10.0.0.7]\", tls: none, allow_private: true}\n")
	config := func(name, delivery string) string {
		return writeFile(t, filepath.Join(dir, name), "hostname: relay.example.com\ndomain: example.com\ndata_dir: "+dir+"/data\n"+delivery)
	}
	for _, tt := range []struct {
		name, delivery string
		want           []string // of the output; none: all is the default
	}{
		{"default", "", nil},
		{"opportunistic", "delivery: {routes: [{domains: [\"*\"], tls: opportunistic}]}\n", nil},
		{"more", "delivery: {routes: [{name: all, domains: [\"*\"], tls: encrypt}]}\n", []string{"delivery.routes, all: tls: opportunistic (now encrypt)"}},
		{"file", "delivery: {routes_file: " + routes + "}\n", []string{"delivery.routes, inner: tls: opportunistic (now none)"}},
		{"policies", "delivery: {tls_policies: {dane: false, mta_sts: false, ignore: [example.net]}}\n",
			[]string{"tls_policies.dane: true (now false)", "tls_policies.mta_sts: true (now false)", "tls_policies.ignore: none (now example.net)"}},
	} {
		t.Run("S1-1 "+tt.name, func(t *testing.T) {
			file := config(tt.name+".yaml", tt.delivery)
			before, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want := 0
			if tt.want != nil {
				want = 1
			}
			status, out, errs := command(t, "tls", "enable-client", "-c", file)
			if status != want || errs != "" || (want == 0) != strings.Contains(out, "TLS is on") {
				t.Errorf("got status %d: %s%s", status, out, errs)
			}
			for _, w := range tt.want {
				if !strings.Contains(out, w) {
					t.Errorf("%q is not in %s", w, out)
				}
			}
			var got struct {
				Default bool
				Set     []setTLS
			}
			status, out, _ = command(t, "tls", "enable-client", "--json", "-c", file)
			if err := json.Unmarshal([]byte(out), &got); err != nil || status != want || got.Default != (want == 0) || len(got.Set) != len(tt.want) {
				t.Errorf("got status %d, %v: %s", status, err, out)
			}
			if status, out, errs := command(t, "tls", "all-default-client", "-c", file); status != want || out+errs != "" {
				t.Errorf("all-default-client: got status %d: %s%s", status, out, errs)
			}
			if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
				t.Errorf("the file was changed: %v", err)
			}
		})
	}
}
