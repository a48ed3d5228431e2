package retry

import (
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mustParse(t *testing.T, text string) Schedule {
	t.Helper()
	s, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// instants are the ages at which a job is tried that fails each time and is tried on time, until it is given up.
func instants(p Plan) []time.Duration {
	var all []time.Duration
	age := time.Duration(0)
	for tries := 1; ; tries++ {
		all = append(all, age)
		if p.IsOver(age) || tries > 1000 {
			return all
		}
		age += p.Wait(Tried{Tries: tries, Age: age})
	}
}

func seconds(all []time.Duration) []int {
	out := make([]int, len(all))
	for i, d := range all {
		out[i] = int(d / time.Second)
	}
	return out
}

const day = 24 * time.Hour

// The whole sequences of Exim and Postfix, to the second.
func TestE6_74_WholeSequences(t *testing.T) {
	tests := []struct {
		name, schedule string
		maxAge         time.Duration
		want           []int // seconds
	}{
		{"list", "1m, 5m, 15m, 1h, 4h", day, []int{0, 60, 360, 1260, 4860, 19260, 33660, 48060, 62460, 76860, 86400}},
		{"S4-26 Exim's default rules, to their own end", "F,2h,15m; G,16h,1h,1.5; F,4d,6h", 5 * day, []int{
			0, 900, 1800, 2700, 3600, 4500, 5400, 6300, 7200, 8100,
			11700, 17100, 25200, 37350, 55575, 82912,
			104512, 126112, 147712, 169312, 190912, 212512, 234112, 255712, 277312, 298912, 320512, 342112,
			363712}}, // after 4d: given up
		{"Exim's default rules, a shorter largest age", "F,2h,15m; G,16h,1h,1.5; F,4d,6h", day, []int{
			0, 900, 1800, 2700, 3600, 4500, 5400, 6300, 7200, 8100, 11700, 17100, 25200, 37350, 55575, 82912, 86400}},
		{"growing alone", "G,3h,10m,2", 5 * day, []int{0, 600, 1800, 4200, 9000, 18600}},
		{"growing onto its cutoff, which is still its own", "G,3h,1h,2; F,1d,2h", 5 * day, []int{0, 3600, 10800, 25200, 32400, 39600, 46800, 54000, 61200, 68400, 75600, 82800, 90000}},
		{"growing from the gap before", "F,1h,30m; G,1d,10m,2", 5 * day, []int{0, 1800, 3600, 5400, 9000, 16200, 30600, 59400, 117000}},
		{"Postfix's defaults", "backoff 300s..4000s", 6 * time.Hour, []int{0, 300, 600, 1200, 2400, 4800, 8800, 12800, 16800, 20800, 21600}},
	}
	for _, tt := range tests {
		t.Run("E6-74 "+tt.name, func(t *testing.T) {
			p, err := Policy{Schedule: mustParse(t, tt.schedule), MaxAge: tt.maxAge}.Complete()
			if err != nil {
				t.Fatal(err)
			}
			plan := p.Plan(Query{Domain: "example.com"})
			all := instants(plan)
			if got := seconds(all); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if got, want := plan.Lifetime(), all[len(all)-1]; got != want {
				t.Errorf("lifetime: got %v, want %v", got, want)
			}
		})
	}
}

// exim is what Exim does in retry_update (src/retry.c), with its own memory of the last try and the next.
type exim struct {
	rules                 []rule
	lastTry, nextTry, now int64 // seconds since the first failure
}

func (e *exim) fail() (given bool) {
	i := slices.IndexFunc(e.rules, func(r rule) bool { return e.now <= int64(r.cutoff/time.Second) })
	if given = i < 0; given {
		i = len(e.rules) - 1
	}
	r := e.rules[i]
	gap := int64(r.gap / time.Second)
	if r.factor > 0 {
		last := min(e.nextTry-e.lastTry, e.now-e.lastTry)
		if last >= gap {
			gap = min(last*int64(r.factor)/1000, max(gap, 24*3600))
		}
	}
	e.lastTry, e.nextTry = e.now, e.now+gap
	return given
}

// Any rules: what is reckoned from the age alone equals what Exim remembers.
func TestRulesEqualExim(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s Schedule
		cutoff := time.Duration(0)
		for range rapid.IntRange(1, 4).Draw(t, "rules") {
			cutoff += time.Duration(rapid.IntRange(1, 100_000).Draw(t, "cutoff")) * time.Second
			r := rule{cutoff: cutoff, gap: time.Duration(rapid.IntRange(10, 20_000).Draw(t, "gap")) * time.Second}
			if rapid.Bool().Draw(t, "grows") {
				r.factor = rapid.IntRange(1001, 3000).Draw(t, "factor")
			}
			s.rules = append(s.rules, r)
		}
		again, err := Parse(s.String())
		if err != nil || again.String() != s.String() || !slices.Equal(again.rules, s.rules) {
			t.Fatalf("%s is read as %s: %v", s, again, err)
		}
		plan := Plan{Schedule: s, MaxAge: 30 * day}
		e := exim{rules: s.rules}
		for n := 1; n < 2000; n++ {
			over := e.fail()
			age := time.Duration(e.now) * time.Second
			if got := plan.IsOver(age); got != over {
				t.Fatalf("%s at %v: given up %v, Exim says %v", s, age, got, over)
			}
			if over {
				return
			}
			if got, want := plan.Wait(Tried{Tries: n, Age: age}), time.Duration(e.nextTry-e.now)*time.Second; got != want {
				t.Fatalf("%s at %v: waits %v, Exim %v", s, age, got, want)
			}
			e.now = e.nextTry
		}
	})
}

// Whatever befalls a job, its waits never lead beyond its largest age, but for the shortest wait there is.
func TestWaitsEndWithLifetime(t *testing.T) {
	schedules := []string{"1m, 5m, 15m, 1h, 4h", "F,2h,15m; G,16h,1h,1.5; F,4d,6h", "backoff 300s..4000s", "10s", "7d", "G,50d,10s,1.001"}
	rapid.Check(t, func(t *rapid.T) {
		s, err := Parse(rapid.SampledFrom(schedules).Draw(t, "schedule"))
		if err != nil {
			t.Fatal(err)
		}
		p := Plan{Schedule: s, MaxAge: time.Duration(rapid.Int64Range(int64(time.Minute), int64(30*day)).Draw(t, "largest age")),
			jitter: rapid.IntRange(0, 50).Draw(t, "jitter"), greylist: rapid.SampledFrom([]time.Duration{0, 6 * time.Minute}).Draw(t, "greylist")}
		tried := Tried{Tries: rapid.IntRange(0, 50).Draw(t, "tries"), Age: time.Duration(rapid.Int64Range(0, int64(31*day)).Draw(t, "age")),
			NotNow: rapid.Bool().Draw(t, "not now"), Greylists: rapid.Bool().Draw(t, "again"), Seed: rapid.Uint64().Draw(t, "seed"), Text: "come back in 99:00:00"}
		wait := p.Wait(tried)
		if wait < MinWait || wait > MinWait && tried.Age+wait > p.MaxAge {
			t.Fatalf("%s: waits %v at %v of %v", s, wait, tried.Age, p.MaxAge)
		}
	})
}

func TestUntried(t *testing.T) {
	tests := []struct {
		schedule string
		tries    int
		age      time.Duration
		want     time.Duration
	}{
		{"1m, 5m, 15m, 1h, 4h", 0, 0, time.Minute},
		{"1m, 5m, 15m, 1h, 4h", 0, 59 * time.Second, time.Minute},
		{"1m, 5m, 15m, 1h, 4h", 0, time.Minute, 5 * time.Minute},
		{"1m, 5m, 15m, 1h, 4h", 0, 6 * time.Minute, 15 * time.Minute},
		{"1m, 5m, 15m, 1h, 4h", 0, 22 * time.Minute, time.Hour},
		{"1m, 5m, 15m, 1h, 4h", 0, 48 * time.Hour, 4 * time.Hour},
		{"1m, 5m, 15m, 1h, 4h", 4, 0, time.Hour},
		{"F,2h,15m; G,16h,1h,1.5; F,4d,6h", 0, 20 * time.Minute, 15 * time.Minute},
		{"F,2h,15m; G,16h,1h,1.5; F,4d,6h", 0, 30 * time.Hour, 6 * time.Hour},
		{"backoff 300s..4000s", 0, 20 * time.Minute, 20 * time.Minute},
	}
	for _, tt := range tests {
		p := Plan{Schedule: mustParse(t, tt.schedule), MaxAge: 5 * day}
		if got := p.Wait(Tried{Tries: tt.tries, Age: tt.age, NotNow: true}); got != tt.want {
			t.Errorf("%s, untried after %d tries at %v: got %v, want %v", tt.schedule, tt.tries, tt.age, got, tt.want)
		}
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"10s, 1m,1h30m":                   "10s, 1m, 1h30m",
		"1m; 5m":                          "1m, 5m",
		"1d12h, 1w":                       "1d12h, 7d",
		"F,2h,15m;G,16h,1h,1.5;F,4d,6h":   "F,2h,15m; G,16h,1h,1.5; F,4d,6h",
		" F, 2h, 15m ; ":                  "F,2h,15m",
		"backoff 300s..4000s":             "backoff 5m..1h6m40s",
		"G,1w,10s,1.001":                  "G,7d,10s,1.001",
		"F,2h,15m; G,16h,1h,1.5; F,4d,1d": "F,2h,15m; G,16h,1h,1.5; F,4d,1d",
	} {
		s, err := Parse(text)
		if err != nil || s.String() != want {
			t.Errorf("%q: got %q, %v, want %q", text, s, err, want)
		}
	}
	for _, text := range []string{"", "1", "1m,", "1m,x", "5s", "-1m", "200h", "0s", "F,2h", "F,2h,15m,2", "G,2h,15m", "G,2h,15m,1", "G,2h,15m,x", "X,2h,15m",
		"F,2h,15m; 1m", "F,2h,15m; F,1h,15m", "F,2h,1s", "backoff 300s", "backoff 4000s..300s", "backoff 1s..2s", "F,100d,1h", ";"} {
		if s, err := Parse(text); err == nil {
			t.Errorf("%q: got %v, want an error", text, s)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{"1m, 5m, 15m, 1h, 4h", "F,2h,15m; G,16h,1h,1.5; F,4d,6h", "backoff 300s..4000s", "1w2d"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(s.String())
		if err != nil || again.String() != s.String() {
			t.Errorf("%q prints as %q, which is read as %q, %v", text, s, again, err)
		}
		if wait := (Plan{Schedule: s, MaxAge: 5 * day}).Wait(Tried{Tries: 3, Age: time.Hour}); wait < MinWait || wait > MaxWait {
			t.Errorf("%q waits %v", text, wait)
		}
	})
}
