package queue

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

func TestLeaseFaults(t *testing.T) {
	var f leaseFaults
	at := time.Now()
	slow, refused := errors.New("timeout"), fmt.Errorf("%w: publish", nats.ErrPermissionViolation)
	if f.note("lead.rotation", slow, at) || len(f.conditions(at.Add(leaseTTL))) > 0 {
		t.Error("it is said before a lease has ended")
	}
	late := at.Add(leaseTTL + time.Second)
	if !f.note("lead.rotation", refused, late) || f.note("lead.rotation", slow, late) {
		t.Error("want it to be said once")
	}
	got := f.conditions(late)
	if len(got) != 1 || !got[0].Since.Equal(at) || !strings.Contains(got[0].Text, "the lease rotation cannot be taken") || !strings.Contains(got[0].Text, "permissions violation") ||
		!strings.Contains(got[0].Do, "accounts.conf") {
		t.Errorf("got %+v, want which, since when, why and what to do", got)
	}
	if f.note("lead.rotation", nil, late); len(f.conditions(late)) > 0 {
		t.Error("it is still said after another process has it")
	}
}

// TestLeaseThatCannotBeTaken has no bucket to take it from.
func TestLeaseThatCannotBeTaken(t *testing.T) {
	q := innerQueue(t)
	if err := q.js.DeleteKeyValue(t.Context(), leaseBucket); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { q.Lead(ctx, "rotation", func(context.Context) { t.Error("it leads") }) })
	later := func() []Condition { return q.leases.conditions(time.Now().Add(2 * leaseTTL)) }
	for end := time.Now().Add(time.Minute); len(later()) == 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if got := later(); len(got) != 1 || !strings.Contains(got[0].Text, "rotation") {
		t.Errorf("got %+v, want the lease", got)
	}
	cancel()
	wg.Wait()
	if got := later(); len(got) > 0 {
		t.Errorf("got %+v after the end", got)
	}
}
