package ledger

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(seconds float64) time.Time { return t0.Add(time.Duration(seconds * float64(time.Second))) }

func rcpt(token string, w Want) string {
	return Address{Token: token, Want: w, Domain: "a." + RecipientDomain}.String()
}

func TestAddressRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Address{
			Token:  rapid.StringMatching(`[a-z0-9]{1,12}`).Draw(t, "token"),
			Index:  rapid.IntRange(0, 200).Draw(t, "index"),
			Want:   rapid.SampledFrom([]Want{WantOK, WantGrey, WantMoody, WantBounce, WantWait, WantReturn, WantCancel, WantBack}).Draw(t, "want"),
			Domain: rapid.StringMatching(`[a-z]{1,8}\.test`).Draw(t, "domain"),
		}
		got, ok := ParseAddress(want.String())
		if !ok || got != want {
			t.Fatalf("got %+v, %v, want %+v", got, ok, want)
		}
		if token, ok := ParseSender(Sender(want.Token)); !ok || token != want.Token {
			t.Fatalf("sender: got %q, %v, want %q", token, ok, want.Token)
		}
	})
	for _, s := range []string{"", "a@b", "t.0@b", "t.x.ok@b", "t.0.maybe@b", ".0.ok@b", "t.-1.ok@b", "t.0.ok"} {
		if _, ok := ParseAddress(s); ok {
			t.Errorf("%q: got ok, want refused", s)
		}
	}
	if _, ok := ParseSender("t@other.test"); ok {
		t.Error("a sender of another domain was taken for ours")
	}
}

func TestAccountOfFates(t *testing.T) {
	message := func(w Want) []Message {
		return []Message{{Token: "t", ID: "id", Recipients: []string{rcpt("t", w)}, Accepted: at(0)}}
	}
	arrival := func(w Want, report bool) Arrival {
		return Arrival{Token: "t", Recipient: rcpt("t", w), Report: report, Worker: "d1", Begin: at(1), At: at(2)}
	}
	queued := map[string][]string{"id": nil}
	back := []Comeback{{ID: "bounces+x", Recipient: rcpt("t", WantBack), At: at(3)}}
	for _, tc := range []struct {
		name   string
		rec    Records
		want   string // of the report's line, as far as it is not zero
		failed bool
	}{
		{"delivered", Records{Messages: message(WantOK), Arrivals: []Arrival{arrival(WantOK, false)}}, "delivered 1", false},
		{"bounced", Records{Messages: message(WantBounce), Arrivals: []Arrival{arrival(WantBounce, true)}}, "bounced 1", false},
		{"waits", Records{Messages: message(WantWait), Queued: queued}, "waiting 1", false},
		{"waits as a named recipient", Records{Messages: message(WantWait), Queued: map[string][]string{"id": {strings.ToUpper(rcpt("t", WantWait))}}}, "waiting 1", false},
		{"waits though released", Records{Messages: message(WantWait), Queued: queued, Released: true}, "STUCK 1", true},
		{"stuck", Records{Messages: message(WantGrey), Queued: queued}, "STUCK 1", true},
		{"lost", Records{Messages: message(WantOK)}, "LOST 1", true},
		{"lost, another recipient queued", Records{Messages: message(WantOK), Queued: map[string][]string{"id": {"x"}}}, "LOST 1", true},
		{"lost while it waits", Records{Messages: message(WantWait)}, "LOST 1", true},
		{"no notification", Records{Messages: message(WantBounce)}, "LOST 1", true},
		{"not an address of ours", Records{Messages: []Message{{ID: "id", Recipients: []string{"x@y"}}}}, "LOST 1", true},
		{"returned by an operator", Records{Messages: message(WantReturn), Arrivals: []Arrival{arrival(WantReturn, true)}, Released: true}, "bounced 1", false},
		{"cancelled", Records{Messages: message(WantCancel), Released: true}, "cancelled 1", false},
		{"cancelled, still queued", Records{Messages: message(WantCancel), Queued: queued, Released: true}, "STUCK 1", true},
		{"cancelled, its sender was told", Records{Messages: message(WantCancel), Arrivals: []Arrival{arrival(WantCancel, true)}, Released: true}, "cancelled 1, misled 1", true},
		{"failed later", Records{Messages: message(WantBack), Back: back, Arrivals: []Arrival{arrival(WantBack, false), arrival(WantBack, true)}}, "delivered 1, told 1", false},
		{"failed later, told to nobody", Records{Messages: message(WantBack), Back: back, Arrivals: []Arrival{arrival(WantBack, false)}}, "delivered 1, LOST 1", true},
		{"failed later, and both who knew of it were killed", Records{Messages: message(WantBack), Back: back, Arrivals: []Arrival{arrival(WantBack, false)},
			Faults: []Fault{{Process: "ingress-1", At: at(1)}, {Process: "d1", At: at(2.1)}}}, "delivered 1, forgotten 1", false},
		{"failed later, and its ingress only was killed", Records{Messages: message(WantBack), Back: back, Arrivals: []Arrival{arrival(WantBack, false)},
			Faults: []Fault{{Process: "ingress-1", At: at(1)}}}, "delivered 1, LOST 1", true},
		{"failed later, and what is known of it was not used", Records{Messages: message(WantBack), Back: back, Arrivals: []Arrival{arrival(WantBack, false)},
			Received: map[string]bool{rcpt("t", WantBack): true}, Faults: []Fault{{Process: "ingress-1", At: at(1)}, {Process: "d1", At: at(2.1)}}}, "delivered 1, LOST 1", true},
		{"misled", Records{Messages: message(WantOK), Arrivals: []Arrival{arrival(WantOK, false), arrival(WantOK, true)}}, "delivered 1, misled 1", true},
		{"left over", Records{Messages: message(WantOK), Arrivals: []Arrival{arrival(WantOK, false)}, Queued: queued}, "delivered 1, leftover 1", true},
		{"damaged", Records{Messages: message(WantOK), Arrivals: []Arrival{{Token: "t", Recipient: rcpt("t", WantOK), Damage: "short"}}}, "delivered 1, damaged 1", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := Account(tc.rec)
			if got := notZero(r.String()); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if r.Failed() != tc.failed {
				t.Errorf("failed: got %v, want %v", r.Failed(), tc.failed)
			}
		})
	}
	late := message(WantOK)
	late[0].Accepted = at(30) // the 250 came when it was out already, and went again
	twice := Account(Records{Messages: late, Faults: []Fault{{Kind: FaultPower, Store: true, At: at(20)}},
		Arrivals: []Arrival{arrival(WantOK, false), {Token: "t", Recipient: rcpt("t", WantOK), Begin: at(31), At: at(31)}}})
	if got := twice.Duplicates[CauseStore]; got != 1 {
		t.Errorf("delivered before it was accepted: got %d explained, want 1: %s", got, twice)
	}
	r := Account(Records{Arrivals: []Arrival{arrival(WantOK, false), arrival(WantOK, false)}})
	if r.Unconfirmed != 1 {
		t.Errorf("unconfirmed: got %d, want 1 message", r.Unconfirmed)
	}
}

// notZero keeps what a report says between the first colon and the semicolon, without the zeros.
func notZero(line string) string {
	_, line, _ = strings.Cut(line, ": ")
	line, _, _ = strings.Cut(line, ";")
	var keep []string
	for part := range strings.SplitSeq(line, ", ") {
		if !strings.HasSuffix(part, " 0") {
			keep = append(keep, part)
		}
	}
	return strings.Join(keep, ", ")
}

func TestAccountOfDuplicates(t *testing.T) {
	r := rcpt("t", WantOK)
	first := Arrival{Token: "t", Recipient: r, Worker: "d1", Begin: at(10), At: at(10.2)}
	again := func(seconds float64) Arrival {
		return Arrival{Token: "t", Recipient: r, Worker: "d2", Begin: at(seconds), At: at(seconds + 0.1)}
	}
	finish := func(seconds float64) []Finish { return []Finish{{ID: "id", Recipient: r, At: at(seconds)}} }
	type result struct {
		Causes map[string]int
		Late   int
		InHand int
		Failed bool
	}
	for _, tc := range []struct {
		name string
		rec  Records
		want result
	}{
		{"worker killed before the record",
			Records{Arrivals: []Arrival{first, again(40)}, Faults: []Fault{{Process: "d1", At: at(10.3)}}},
			result{map[string]int{CauseWorker: 1}, 0, 1, false}},
		{"worker killed in the dialogue",
			Records{Arrivals: []Arrival{first, again(40)}, Faults: []Fault{{Process: "d1", At: at(10.1), Open: 1}}},
			result{map[string]int{CauseWorker: 1}, 0, 1, false}},
		{"another worker killed",
			Records{Arrivals: []Arrival{first, again(40)}, Faults: []Fault{{Process: "d2", At: at(10.3)}}},
			result{map[string]int{CauseNone: 1}, 0, 0, true}},
		{"worker killed long after",
			Records{Arrivals: []Arrival{first, again(40)}, Faults: []Fault{{Process: "d1", At: at(20)}}},
			result{map[string]int{CauseNone: 1}, 0, 0, true}},
		{"queue killed",
			Records{Arrivals: []Arrival{first, again(40)}, Faults: []Fault{{Process: "queue", Store: true, At: at(11)}}},
			result{map[string]int{CauseStore: 1}, 0, 1, false}},
		{"queue away when it began",
			Records{Arrivals: []Arrival{first, again(40)}, Faults: []Fault{{Process: "queue", Store: true, At: at(8), Until: at(12)}}},
			result{map[string]int{CauseStore: 1}, 0, 0, true}},
		{"worker killed while it waits for the queue",
			Records{Arrivals: []Arrival{first, again(40)}, Faults: []Fault{{Process: "queue", Store: true, At: at(10.3), Until: at(15)}, {Process: "d1", At: at(14)}}},
			result{map[string]int{CauseWorker: 1}, 0, 1, false}},
		{"began while a server was cut off",
			Records{Arrivals: []Arrival{first, again(40)}, Faults: []Fault{{Kind: FaultCut, Process: "queue-1", Store: true, At: at(8), Until: at(12)}}},
			result{map[string]int{CauseStore: 1}, 0, 1, false}},
		{"recorded in time, then returned",
			Records{Arrivals: []Arrival{first, again(40)}, Faults: []Fault{{Process: "queue", Store: true, At: at(11)}}, Finishes: finish(10.5)},
			result{map[string]int{CauseNone: 1}, 1, 0, true}},
		{"recorded right before the kill of the queue, then the worker killed too",
			Records{Arrivals: []Arrival{first, again(12)}, Faults: []Fault{{Process: "queue", Store: true, At: at(10.51)}, {Process: "d1", At: at(11)}}, Finishes: finish(10.5)},
			result{map[string]int{CauseWorker: 1}, 0, 1, false}},
		{"recorded right before the kill of the queue, the worker lives",
			Records{Arrivals: []Arrival{first, again(12)}, Faults: []Fault{{Process: "queue", Store: true, At: at(10.51)}, {Process: "d1", At: at(13)}}, Finishes: finish(10.5)},
			result{map[string]int{CauseNone: 1}, 1, 0, true}},
		{"recorded just before the power went",
			Records{Arrivals: []Arrival{first, again(40)}, Faults: []Fault{{Kind: FaultPower, Process: "queue", Store: true, At: at(11)}}, Finishes: finish(10.5)},
			result{map[string]int{CauseStore: 1}, 0, 1, false}},
		{"recorded well before the power went",
			Records{Arrivals: []Arrival{first, again(40)}, Faults: []Fault{{Kind: FaultPower, Process: "queue", Store: true, At: at(12)}}, Finishes: finish(10.5)},
			result{map[string]int{CauseNone: 1}, 1, 0, true}},
		{"recorded, killed before the acknowledgement",
			Records{Arrivals: []Arrival{first, again(10.9)}, Faults: []Fault{{Process: "d1", At: at(10.4)}}, Finishes: finish(10.5)},
			result{map[string]int{CauseWorker: 1}, 0, 1, false}},
		{"the record is that of the repeat",
			Records{Arrivals: []Arrival{first, again(40)}, Faults: []Fault{{Process: "d1", At: at(10.3)}}, Finishes: finish(40.2)},
			result{map[string]int{CauseWorker: 1}, 0, 1, false}},
		{"three times",
			Records{Arrivals: []Arrival{again(40), first, again(70)}, Faults: []Fault{{Process: "d1", At: at(10.3)}, {Process: "d2", At: at(40.1)}}},
			result{map[string]int{CauseWorker: 2}, 0, 2, false}},
		{"a notification twice",
			Records{Arrivals: []Arrival{{Recipient: r, Report: true, Worker: "d1", Begin: at(10), At: at(10)}, {Recipient: r, Report: true, Worker: "d1", Begin: at(90), At: at(90)}}},
			result{map[string]int{CauseNone: 1}, 0, 0, true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.rec.Messages = []Message{{Token: "t", ID: "id", Recipients: []string{r}}}
			for i := range tc.rec.Arrivals {
				if tc.rec.Arrivals[i].Report { // keeps the message itself out of the result
					tc.rec.Arrivals[i].Token = "other"
					tc.rec.Messages = nil
				}
			}
			report := Account(tc.rec)
			got := result{report.Duplicates, len(report.Late), report.InHand, report.Failed()}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestBook(t *testing.T) {
	path := filepath.Join(t.TempDir(), "book.jsonl")
	b, err := NewBook(path)
	if err != nil {
		t.Fatal(err)
	}
	b.Accept(Message{Token: "t", ID: "id", Recipients: []string{rcpt("t", WantOK), rcpt("t", WantWait)}})
	if got := b.Open(false); got != 1 {
		t.Errorf("open: got %d, want 1", got)
	}
	b.Arrive(Arrival{Token: "t", Recipient: rcpt("t", WantOK)})
	b.Fault(Fault{Kind: FaultKill, Process: "d1"})
	if open, all := b.Open(false), b.Open(true); open != 0 || all != 1 {
		t.Errorf("open: got %d and %d with the waiting, want 0 and 1", open, all)
	}
	if b.Accepted() != 1 || b.Faults() != 1 {
		t.Errorf("got %d accepted, %d faults, want 1 and 1", b.Accepted(), b.Faults())
	}
	if rec := b.Records(); len(rec.Messages) != 1 || len(rec.Arrivals) != 1 || len(rec.Faults) != 1 {
		t.Errorf("records: got %+v", rec)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(text), "\n"); got != 3 {
		t.Errorf("lines in the file: got %d, want 3", got)
	}
	if _, err := NewBook(t.TempDir()); err == nil {
		t.Error("a directory was taken for a book")
	}
}
