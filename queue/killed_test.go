//go:build failpoints

package queue

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"postroad/queue/address"
	"postroad/queue/embedded"
)

const (
	killedURL = "QUEUE_TEST_URL" // of the queue that outlives the child
	killedDir = "QUEUE_TEST_DIR" // of the store that dies with it
	killedDo  = "QUEUE_TEST_DO"
)

// notice is what a job's sender is told.
func notice(j *Job) Notification {
	e := Envelope{Accepted: time.Now(), HeaderFrom: "relay.example", Recipients: []Recipient{{Path: address.Path{Local: "s", Domain: "sender.example"}}}}
	return Notification{Key: "failed", Envelope: e, Payload: []byte("Subject: failed\r\n\r\n")}
}

// work delivers every job with one settlement.
func work(settle func(*Job) Settlement) func(context.Context, *Queue) error {
	return func(ctx context.Context, q *Queue) error {
		return q.Deliver(ctx, 8, func(ctx context.Context, d *Delivery) { _ = d.Settle(ctx, settle(&d.Job)) })
	}
}

func order(do func(*Queue, context.Context, Selection) (int, error)) func(context.Context, *Queue) error {
	return func(ctx context.Context, q *Queue) error {
		_, err := do(q, ctx, Selection{})
		return err
	}
}

func sendBack(q *Queue, ctx context.Context, sel Selection) (int, error) {
	return q.Return(ctx, sel, "too old")
}

// deeds are what a process is killed in.
var deeds = map[string]func(context.Context, *Queue) error{
	"pull": func(ctx context.Context, q *Queue) error {
		_, err := q.Pull(ctx, []string{"a.example", "b.example"}, time.Now(), 10, func(context.Context) error { return nil })
		return err
	},
	"retry":  order((*Queue).Retry),
	"return": order(sendBack),
	"cancel": order((*Queue).Cancel),
	"elsewhere": work(func(j *Job) Settlement {
		return Settlement{Remaining: j.Recipients, Delay: 10 * time.Second, Elsewhere: true, Reason: "elsewhere"}
	}),
	"report": work(func(j *Job) Settlement { return Settlement{Notify: []Notification{notice(j)}} }),
}

// TestKilledChild does a deed and is killed in it; TestKilledBetweenSteps runs it.
func TestKilledChild(t *testing.T) {
	deed := deeds[os.Getenv(killedDo)]
	if deed == nil {
		return // it is a part of TestKilledBetweenSteps
	}
	connect := func(extra ...nats.Option) (*nats.Conn, error) { return nats.Connect(os.Getenv(killedURL), extra...) }
	if dir := os.Getenv(killedDir); dir != "" {
		connect = startStore(t, dir).Connect
	}
	q, err := Open(t.Context(), killedOptions("victim", connect))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	t.Fatalf("it came to its end: %v", deed(ctx, q))
}

func killedOptions(node string, connect func(...nats.Option) (*nats.Conn, error)) Options {
	return Options{Connect: connect, Node: node, MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler), AckWait: time.Second, leeway: time.Minute}
}

func startStore(t *testing.T, dir string) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(embedded.Options{Dir: dir, Listen: "127.0.0.1:0", MaxBytes: StoreBytes(1 << 30), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop(context.Background()) })
	return s
}

func openStore(t *testing.T, s *embedded.Server) *Queue {
	t.Helper()
	q, err := Open(t.Context(), killedOptions("test", s.Connect))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close(context.Background()) })
	return q
}

// TestKilledBetweenSteps kills a process at the steps of moves that its deed is made of, by itself and with the store in it. An operator gives
// his order again. Then everything goes its way once: nothing is left, and nobody gets or hears anything twice.
func TestKilledBetweenSteps(t *testing.T) {
	const both = "r@a.example r@b.example"
	for _, tt := range []struct {
		do, step string
		isReady  bool // else it waits
		again    func(*Queue, context.Context, Selection) (int, error)
		relayed  string
		told     int // notifications
	}{
		{do: "pull", step: "pull.published", relayed: both},
		{do: "retry", step: "operate.published", again: (*Queue).Retry, relayed: both},
		{do: "return", step: "operate.published", again: sendBack, told: 2},
		{do: "cancel", step: "finish.done", again: (*Queue).Cancel},
		{do: "cancel", step: "cancel.finished", again: (*Queue).Cancel},
		{do: "elsewhere", step: "settle.begin", isReady: true, relayed: both},
		{do: "elsewhere", step: "defer.published", isReady: true, relayed: both},
		{do: "report", step: "settle.begin", isReady: true, relayed: both},
		{do: "report", step: "bounce.published", isReady: true, told: 2},
		{do: "report", step: "finish.done", isReady: true, told: 2},
	} {
		for _, withStore := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s at %s, with the store %v", tt.do, tt.step, withStore), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				s := startStore(t, dir)
				q := openStore(t, s)
				id := NewID()
				jobs := q.storeMail(t, id, "a.example", "b.example")
				q.signerDone(t, 1)
				for _, j := range jobs {
					place := laterSpot("10s")
					if tt.isReady {
						place = q.readySpot(j.Domain)
					}
					q.storeJob(t, place, j, 2)
				}
				env := []string{killedDo + "=" + tt.do, "POSTROAD_FAILPOINT=" + tt.step + ":1", killedURL + "=" + s.ClientURL()}
				if withStore {
					if err := q.Close(t.Context()); err != nil {
						t.Fatal(err)
					}
					if err := s.Stop(t.Context()); err != nil {
						t.Fatal(err)
					}
					env = append(env, killedDir+"="+dir)
				}
				die(t, env)
				if withStore {
					q = openStore(t, startStore(t, dir))
					if _, err := q.Recover(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				if tt.again != nil {
					if _, err := tt.again(q, t.Context(), Selection{}); err != nil {
						t.Fatal(err)
					}
				}
				// What a killed worker had in hand was to be reported in any case; who reports it now finds what is there.
				relayed, told := goOn(t, q, tt.do == "report" && tt.relayed == "")
				if d := cmp.Diff(strings.Fields(tt.relayed), relayed); d != "" && tt.relayed+strings.Join(relayed, "") != "" {
					t.Errorf("relayed (-want +got):\n%s", d)
				}
				if told != tt.told {
					t.Errorf("told the sender %d times, want %d", told, tt.told)
				}
				if c := q.contents(t); len(c) > 0 {
					t.Errorf("left over: %v", c)
				}
			})
		}
	}
}

// die runs the child, which must be killed.
func die(t *testing.T, env []string) {
	t.Helper()
	c := exec.Command(os.Args[0], "-test.run=^TestKilledChild$")
	c.Env = append(os.Environ(), env...)
	out, err := c.CombinedOutput()
	state, is := c.ProcessState.Sys().(syscall.WaitStatus)
	if !is || !state.Signaled() || state.Signal() != syscall.SIGKILL {
		t.Fatalf("it did not come to the step: %v\n%s", err, out)
	}
}

// goOn runs the roles until nothing is left, and returns who got the mail and how many notifications went out. What is returned is reported,
// and everything when isReported says so.
func goOn(t *testing.T, q *Queue, isReported bool) (relayed []string, told int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var mu sync.Mutex
	var roles sync.WaitGroup
	roles.Go(func() { _ = q.RunTimers(ctx) })
	roles.Go(func() {
		_ = q.Sign(ctx, 8, func(ctx context.Context, s *Signing) {
			if err := s.Signed(ctx, ""); err != nil {
				t.Error(err)
			}
		})
	})
	roles.Go(func() {
		_ = q.Deliver(ctx, 8, func(ctx context.Context, d *Delivery) {
			body, err := d.Open(ctx)
			if err != nil {
				return // its mail is gone
			}
			_ = body.Close()
			s := Settlement{Tried: true}
			mu.Lock()
			switch {
			case d.Job.Kind == KindDSN:
				told++
			case isReported || d.Job.Returned != "":
				s.Notify = []Notification{notice(&d.Job)}
			default:
				relayed = append(relayed, d.Job.Recipients[0].Path.String())
			}
			mu.Unlock()
			if err := d.Settle(ctx, s); err != nil {
				t.Error(err)
			}
		})
	})
	for ctx.Err() == nil && len(q.contents(t)) > 0 {
		_ = sleep(ctx, 100*time.Millisecond)
	}
	cancel()
	roles.Wait()
	slices.Sort(relayed)
	return relayed, told
}
