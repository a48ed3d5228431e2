package rotation

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postroad/signer/keyring"
)

var noon = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

// key is an entry that came into its state some time before noon; negative: at
// no known time.
func key(selector string, state keyring.State, ago time.Duration) keyring.Entry {
	e := keyring.Entry{Domain: domain, Selector: selector, Algorithm: keyring.RSA, State: state}
	if strings.HasPrefix(selector, "ed25519") {
		e.Algorithm = keyring.Ed25519
	}
	if ago >= 0 {
		e.History = []keyring.Step{{State: state, At: noon.Add(-ago)}}
	}
	return e
}

func pair(tail string, state keyring.State, ago time.Duration) []keyring.Entry {
	return []keyring.Entry{key("rsa-"+tail, state, ago), key("ed25519-"+tail, state, ago)}
}

func join(lists ...[]keyring.Entry) []keyring.Entry {
	var all []keyring.Entry
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

func TestNext(t *testing.T) {
	one := func(e keyring.Entry) []keyring.Entry { return []keyring.Entry{e} }
	for _, c := range []struct {
		name    string
		entries []keyring.Entry
		change  func(*Policy)
		demand  time.Time
		want    []string // time from noon, step
	}{
		{name: "nothing"},
		{name: "first keys", demand: noon, want: []string{
			"0s create rsa-202608", "0s create ed25519-202608", "0s publish rsa-202608", "0s publish ed25519-202608",
			"0s activate rsa-202608", "0s activate ed25519-202608",
		}},
		{name: "at rest", entries: pair("202607", keyring.Active, 30*day)},
		{name: "by hand, at rest", entries: one(key("s1", keyring.Active, -1))},
		{name: "by hand, on demand", entries: one(key("s1", keyring.Active, -1)), demand: noon, want: []string{
			"0s create rsa-202608", "0s create ed25519-202608", "0s publish rsa-202608", "0s publish ed25519-202608",
			"0s activate rsa-202608", "0s activate ed25519-202608", "2m0s retire s1", "288h2m0s revoke s1", "1008h2m0s remove s1",
		}},
		{name: "by hand, of unknown age", entries: one(key("s1", keyring.Active, -1)), change: func(p *Policy) { p.RotateEvery, p.Algorithms = 90*day, []keyring.Algorithm{keyring.RSA} },
			want: []string{"0s create rsa-202608", "0s publish rsa-202608", "0s activate rsa-202608", "2m0s retire s1", "288h2m0s revoke s1", "1008h2m0s remove s1"}},
		{name: "not of age", entries: pair("202607", keyring.Active, 89*day), change: func(p *Policy) { p.RotateEvery = 90 * day }},
		{name: "of age, with a spare", entries: join(pair("202605", keyring.Active, 90*day), pair("202607", keyring.Published, 80*day)),
			change: func(p *Policy) { p.RotateEvery, p.KeepSpare = 90*day, true }, want: []string{
				"0s activate rsa-202607", "0s activate ed25519-202607", "0s create rsa-202608", "0s create ed25519-202608",
				"0s publish rsa-202608", "0s publish ed25519-202608", "2m0s retire rsa-202605", "2m0s retire ed25519-202605",
				"288h2m0s revoke rsa-202605", "288h2m0s revoke ed25519-202605", "1008h2m0s remove rsa-202605", "1008h2m0s remove ed25519-202605",
			}},
		{name: "a spare is wanted", entries: pair("202608", keyring.Active, day), change: func(p *Policy) { p.KeepSpare = true },
			want: []string{"0s create rsa-202608-2", "0s create ed25519-202608-2", "0s publish rsa-202608-2", "0s publish ed25519-202608-2"}},
		{name: "no selector twice", entries: join(pair("202608", keyring.Active, day), pair("202608-2", keyring.Removed, day), one(key("ed25519-202608-3", keyring.Revoked, 0))),
			change: func(p *Policy) { p.KeepSpare = true }, want: []string{"0s create rsa-202608-4", "0s create ed25519-202608-4",
				"0s publish rsa-202608-4", "0s publish ed25519-202608-4", "720h0m0s remove ed25519-202608-3"}},
		{name: "half of a creation", entries: join(pair("202605", keyring.Active, day), one(key("rsa-202607-2", keyring.Generated, day))), demand: noon,
			want: []string{"0s create ed25519-202607-2", "0s publish rsa-202607-2", "0s publish ed25519-202607-2", "0s activate rsa-202607-2", "0s activate ed25519-202607-2",
				"2m0s retire rsa-202605", "2m0s retire ed25519-202605", "288h2m0s revoke rsa-202605", "288h2m0s revoke ed25519-202605",
				"1008h2m0s remove rsa-202605", "1008h2m0s remove ed25519-202605"}},
		{name: "half of a handover", entries: join(pair("202605", keyring.Active, 50*day), one(key("rsa-202607", keyring.Active, 0)), one(key("ed25519-202607", keyring.Published, day))),
			want: []string{"0s activate ed25519-202607", "2m0s retire rsa-202605", "2m0s retire ed25519-202605", "288h2m0s revoke rsa-202605", "288h2m0s revoke ed25519-202605",
				"1008h2m0s remove rsa-202605", "1008h2m0s remove ed25519-202605"}},
		{name: "half of a spare is gone", entries: join(pair("202605", keyring.Active, day), one(key("rsa-202607", keyring.Revoked, 40*day)), one(key("ed25519-202607", keyring.Published, day))),
			want: []string{"0s remove ed25519-202607", "0s remove rsa-202607"}},
		{name: "a newer key by hand stays", entries: join(pair("202605", keyring.Active, 10*day), one(key("mail2026", keyring.Active, day)))},
		{name: "keys of no known time stay", entries: join(pair("202605", keyring.Active, -1), pair("202606", keyring.Active, -1))},
		{name: "a time that nobody wrote down", entries: join(pair("202605", keyring.Active, day), one(key("s1", keyring.Retiring, -1)))},
		{name: "first keys are made", entries: pair("202607", keyring.Generated, day), want: []string{
			"0s publish rsa-202607", "0s publish ed25519-202607", "0s activate rsa-202607", "0s activate ed25519-202607"}},
		{name: "all were revoked", entries: pair("202607", keyring.Revoked, 40*day), change: func(p *Policy) { p.KeepSpare, p.RotateEvery = true, day },
			want: []string{"0s remove rsa-202607", "0s remove ed25519-202607"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := benchPolicy()
			if c.change != nil {
				c.change(&p)
			}
			steps, err := Next(domain, c.entries, p, c.demand, noon)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range steps {
				got = append(got, s.Earliest.Sub(noon).String()+" "+string(s.Do)+" "+s.Selector)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

// TestNextInWords is what --dry-run prints.
func TestNextInWords(t *testing.T) {
	p := benchPolicy()
	p.Algorithms = []keyring.Algorithm{keyring.RSA}
	steps, err := Next(domain, []keyring.Entry{key("s1", keyring.Active, -1)}, p, noon, noon)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range steps {
		got = append(got, s.String())
	}
	want := []string{
		"create rsa-202608 of example.com",
		"publish rsa-202608 of example.com, when all authoritative servers and 2 resolvers have its record",
		"activate rsa-202608 of example.com, when all authoritative servers and 2 resolvers have its record and no resolver remembers any more that there was no record",
		"retire s1 of example.com (its successor signs), when it is 2026-08-01 12:02:00Z (all signers know the new key)",
		"revoke s1 of example.com, when it is 2026-08-13 12:02:00Z (mail that it signed has arrived or expired) and no queued mail bears its signature",
		"remove s1 of example.com, when it is 2026-09-12 12:02:00Z (nobody asks for it any more)",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
}

func TestBegin(t *testing.T) {
	for _, c := range []struct {
		name    string
		entries []keyring.Entry
		want    bool
	}{
		{"nothing", nil, true},
		{"at rest", pair("202605", keyring.Active, day), true},
		{"a spare was made", join(pair("202605", keyring.Active, day), pair("202607", keyring.Generated, 0)), true},
		{"half of a handover", join(pair("202605", keyring.Active, day), []keyring.Entry{key("rsa-202607", keyring.Active, 0), key("ed25519-202607", keyring.Published, 0)}), false},
		{"both sign", join(pair("202605", keyring.Active, day), pair("202607", keyring.Active, 0)), false},
		{"old ones retire", join(pair("202605", keyring.Retiring, day), pair("202607", keyring.Active, day)), false},
		{"old ones are revoked", join(pair("202605", keyring.Revoked, day), pair("202607", keyring.Active, 13*day)), true},
	} {
		got, err := Begin(c.entries, benchPolicy(), noon)
		if err != nil || got.IsZero() == c.want {
			t.Errorf("%s: got %v, %v, want a new rotation: %t", c.name, got, err, c.want)
		}
	}
}

func TestDue(t *testing.T) {
	p := benchPolicy()
	if at, ok := Due(pair("202605", keyring.Active, 80*day), p, noon); ok {
		t.Errorf("on demand only: got %v", at)
	}
	p.RotateEvery = 90 * day
	if at, ok := Due(pair("202605", keyring.Active, 80*day), p, noon); !ok || !at.Equal(noon.Add(10*day)) {
		t.Errorf("got %v, %t, want in ten days", at, ok)
	}
	if at, ok := Due([]keyring.Entry{key("s1", keyring.Active, -1)}, p, noon); !ok || !at.Equal(noon) {
		t.Errorf("unknown age: got %v, %t, want now", at, ok)
	}
	if _, ok := Due(nil, p, noon); ok {
		t.Error("no keys: got a time")
	}
}

func TestPolicyRefuses(t *testing.T) {
	for _, c := range []struct {
		change func(*Policy)
		want   string
	}{
		{func(p *Policy) { p.MaxQueueAge = 0 }, "max queue age must be set"},
		{func(p *Policy) { p.Overlap = day }, "overlap of 24h0m0s is shorter than the 120h0m0s"},
		{func(p *Policy) { p.RotateEvery = -1 }, "negative"},
		{func(p *Policy) { p.Resolvers = -1 }, "negative"},
		{func(p *Policy) { p.Algorithms = []keyring.Algorithm{keyring.Ed25519} }, "must not sign alone"},
		{func(p *Policy) { p.Algorithms = []keyring.Algorithm{keyring.RSA, keyring.RSA} }, "there twice"},
		{func(p *Policy) { p.Algorithms = []keyring.Algorithm{"rsa-sha1"} }, "unknown"},
		{func(p *Policy) { p.Selector = "key-{yyyymm}" }, "add {algo}"},
		{func(p *Policy) { p.Selector = "{ALGO}" }, "lower-case"},
		{func(p *Policy) { p.Selector = "{algo}/{yyyymm}" }, "lower-case"},
		{func(p *Policy) { p.Selector = "{algo}.{yyyymm}" }, "lower-case"},
		{func(p *Policy) { p.Selector = "{algo}-{algo}" }, "at most once"},
		{func(p *Policy) { p.Selector = strings.Repeat("a", 50) + "{algo}{yyyymm}" }, "at most 63"},
	} {
		p := benchPolicy()
		c.change(&p)
		if _, err := Next(domain, nil, p, time.Time{}, noon); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
		if _, err := New(Options{Store: newMemory(), Publication: newWorld(nil), Sent: newWorld(nil), Policy: p}); err == nil {
			t.Errorf("%s: New took it", c.want)
		}
	}
	if _, err := New(Options{Policy: benchPolicy()}); err == nil {
		t.Error("New took no store")
	}
}

// TestPairMovesTogether retires nothing while half of the new pair waits.
func TestPairMovesTogether(t *testing.T) {
	p, err := benchPolicy().complete()
	if err != nil {
		t.Fatal(err)
	}
	entries := join(pair("202605", keyring.Active, 50*day), []keyring.Entry{key("rsa-202607", keyring.Active, day), key("ed25519-202607", keyring.Published, 2*day)})
	steps := p.steps(domain, entries, time.Time{}, noon)
	if len(steps) != 1 || steps[0].Do != Activate || steps[0].Selector != "ed25519-202607" {
		t.Errorf("got %v, want the other half activated and nothing else", steps)
	}
}
