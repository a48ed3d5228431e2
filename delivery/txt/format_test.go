package txt

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"pgregory.net/rapid"
)

func formatted(t *testing.T, format string, records ...Record) string {
	t.Helper()
	var b bytes.Buffer
	if err := Format(&b, format, records...); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestFormat compares with testdata/format.
func TestFormat(t *testing.T) {
	keys := []Record{
		{Name: "rsa-202601._domainkey.example.com", Value: "v=DKIM1; h=sha256; s=email; k=rsa; p=" + strings.Repeat("MIIBIjANBgkqhkiG9w0B", 32) + "IDAQAB", TTL: 0},
		{Name: "Ed25519-202601._domainkey.example.com.", Value: "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=", TTL: 5 * time.Minute},
		{Name: "1a._domainkey.example.com", Value: `v=DKIM1; n=say "${x}" \ %{y} <&>; p=`, TTL: time.Second},
		{Name: "1a_domainkey.example.com", Value: strings.Repeat("x", 255), TTL: time.Second},
		{Name: "1a._domainkey_example.com", Value: strings.Repeat("x", 256), TTL: time.Second},
	}
	for _, format := range Formats() {
		t.Run(format, func(t *testing.T) {
			got := formatted(t, format, keys...)
			path := filepath.Join("testdata", "format", format+".txt")
			if *rewrite {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (go test -update writes it anew):\n%s", path, diff)
			}
			if format == FormatJSON || format == FormatRoute53 {
				if !json.Valid([]byte(formatted(t, format))) {
					t.Error("got no JSON for no records")
				}
			}
		})
	}
}

func TestFormatRefuses(t *testing.T) {
	good := Record{Name: "a.example", Value: "v"}
	tests := []struct {
		name    string
		format  string
		records []Record
		says    string
	}{
		{"format", "yaml", nil, "want zone, nsupdate, terraform"},
		{"name", FormatZone, []Record{{Name: "a b", Value: "v"}}, "no domain name"},
		{"value", FormatZone, []Record{{Name: "a.example"}}, "has no value"},
		{"TTL", FormatZone, []Record{{Name: "a.example", Value: "v", TTL: -1}}, "whole seconds"},
		{"two of a name", FormatZone, []Record{good, {Name: "A.example.", Value: "w"}}, "has two TXT records"},
		{"octets in JSON", FormatJSON, []Record{{Name: "a.example", Value: "\xff"}}, "use zone"},
		{"octets in Terraform", FormatTerraformGeneric, []Record{{Name: "a.example", Value: "ü"}}, "use zone"},
	}
	for _, tt := range tests {
		var b bytes.Buffer
		if err := Format(&b, tt.format, tt.records...); err == nil || !strings.Contains(err.Error(), tt.says) || b.Len() > 0 {
			t.Errorf("%s: got %v, %q, want %q", tt.name, err, b.String(), tt.says)
		}
	}
}

// anyRecord is a record with any octets in its value.
func anyRecord(t *rapid.T) Record {
	return Record{
		Name:  rapid.StringMatching(`[a-z0-9_]{1,20}(\.[a-z0-9_-]{1,20}){1,3}`).Draw(t, "name"),
		Value: string(rapid.OneOf(rapid.SliceOfN(rapid.Byte(), 1, 800), rapid.SliceOfN(rapid.ByteRange('!', '~'), 1, 800)).Draw(t, "value")),
		TTL:   time.Duration(rapid.IntRange(1, 1<<31-1).Draw(t, "ttl")) * time.Second,
	}
}

// same checks that a record that was parsed, and one that went through the wire, is r.
func same(t *rapid.T, rr dns.RR, r Record) {
	got, ok := rr.(*dns.TXT)
	if !ok {
		t.Fatalf("got %v", rr)
	}
	if valueOf(got) != r.Value || got.Hdr.Name != r.Name+"." || got.Hdr.Ttl != uint32(r.TTL/time.Second) {
		t.Fatalf("got %v\nwant %+v", got, r)
	}
	buf := make([]byte, 64<<10)
	end, err := dns.PackRR(rr, buf, 0, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	back, _, err := dns.UnpackRR(buf[:end], 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := valueOf(back.(*dns.TXT)); got != r.Value {
		t.Fatalf("through the wire: got %q, want %q", got, r.Value)
	}
}

func TestZoneFormIsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := anyRecord(t)
		var b bytes.Buffer
		if err := Format(&b, FormatZone, r); err != nil {
			t.Fatal(err)
		}
		p := dns.NewZoneParser(&b, ".", "")
		rr, _ := p.Next()
		if _, more := p.Next(); more || p.Err() != nil {
			t.Fatalf("got more than one record, or %v", p.Err())
		}
		same(t, rr, r)
	})
}

func TestNsupdateFormIsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := anyRecord(t)
		var b bytes.Buffer
		if err := Format(&b, FormatNsupdate, r); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(b.String(), "\n")
		if len(lines) != 4 || lines[0] != "update delete "+r.Name+". TXT" || lines[2] != "send" {
			t.Fatalf("got %q", lines)
		}
		line, ok := strings.CutPrefix(lines[1], "update add ")
		if !ok {
			t.Fatalf("got %q", lines[1])
		}
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatal(err)
		}
		same(t, rr, r)
	})
}

func TestEscapeIsUndone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := string(rapid.SliceOf(rapid.Byte()).Draw(t, "s"))
		if got := unescape(escape(s)); got != s {
			t.Fatalf("got %q, want %q", got, s)
		}
	})
}
