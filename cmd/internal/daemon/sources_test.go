package daemon

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"postroad/cmd/internal/config"
	"postroad/delivery/mx"
	"postroad/delivery/mx/mxtest"
	"postroad/queue"
)

// A whole process: a new source sends what its first day allows, counted in the queue, the other one the rest; events say which; a source that
// is not on this machine is in the status.
func TestSourcesOfAProcess(t *testing.T) {
	port, got := destination(t, accepts)
	c := testConfig(shortDir(t), port)
	c.Delivery.Sources = []config.Source{
		{Name: "out2", IPv4: "127.0.0.2", EHLO: "out2.test.example"},
		{Name: "new3", IPv4: "127.0.0.3", EHLO: "out3.test.example", Started: time.Now().UTC().Format(time.DateOnly)},
		{Name: "gone", IPv4: "240.0.0.1"},
	}
	c.Delivery.Pools = []config.Pool{{Name: "main", Members: []config.PoolMember{{Source: "out2", Weight: 1}, {Source: "new3", Weight: 1000}}}}
	c.Delivery.Pool, c.Delivery.WarmUp = "main", config.WarmUp{Days: 30, First: 3, Last: 3}
	d := start(t, c)
	const mails = 8
	for i := range mails {
		send(t, d.ingress.Addrs()[0], fmt.Sprint(i))
	}
	for range mails {
		select {
		case <-got:
		case <-time.After(timeLimit):
			t.Fatal("not all mails came")
		}
	}
	from := make(map[string]int)
	for end := time.Now().Add(timeLimit); from["out2"]+from["new3"] < mails && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		clear(from)
		for e, err := range d.queue.Trace(t.Context(), queue.TraceFilter{Since: time.Now().Add(-time.Hour)}) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Type == queue.Delivered {
				from[e.Egress]++
			}
		}
	}
	if from["new3"] != 3 || from["out2"] != mails-3 {
		t.Errorf("got %v, want 3 from the new source and the rest from the other", from)
	}
	text := fmt.Sprint(d.self().Conditions)
	if !strings.Contains(text, "source gone is not used here") || strings.Contains(text, "out2") {
		t.Errorf("got conditions %s", text)
	}
}

// E3-46: only a domain that says so takes no mail; trouble is no reason.
func TestE3_46_TakesNoMail(t *testing.T) {
	ask := takesNoMail(mxtest.Records{
		MX:   map[string][]mx.MX{"null.test": {{Host: ""}}, "mail.test": {{Host: "mx.test"}}, "both.test": {{Host: ""}, {Host: "mx.test"}}, "none.test": {}},
		Fail: map[string]error{"fails.test": errors.New("SERVFAIL")},
	})
	for domain, want := range map[string]bool{"null.test": true, "mail.test": false, "both.test": false, "none.test": false, "fails.test": false, "missing.test": false} {
		if got := ask(t.Context(), domain); got != want {
			t.Errorf("%s: got %v", domain, got)
		}
	}
}
