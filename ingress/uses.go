package ingress

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"sync"
	"time"

	"postroad/ingress/account"
	"postroad/queue"
)

// Uses remembers which password each client came with last. *queue.Queue is one.
type Uses interface {
	// NoteUse notes a login. It may take seconds: no session waits for it.
	NoteUse(ctx context.Context, u queue.Use) error
}

var _ Uses = (*queue.Queue)(nil)

const (
	maxWaitingUses = 256                             // that wait to be noted; more are dropped, and noted at their next login
	maxNotedUses   = 20000                           // pairs of client and password whose last note is remembered
	noteEvery      = 10*time.Minute + 10*time.Second // the queue writes a pair every ten minutes and would pass over one that is early
	noteTimeout    = 5 * time.Second
)

type pairOfUse struct{ client, password string }

// useWriter notes uses of passwords, one after the other, behind the sessions' back.
type useWriter struct {
	uses    Uses // nil: nobody wants to know
	log     *slog.Logger
	waiting chan queue.Use
	stop    context.CancelFunc
	ctx     context.Context
	running sync.WaitGroup

	mu    sync.Mutex
	noted map[pairOfUse]time.Time
	said  bool // that notes fail, until one succeeds
}

func newUseWriter(uses Uses, log *slog.Logger) *useWriter {
	w := &useWriter{uses: uses, log: log, waiting: make(chan queue.Use, maxWaitingUses), noted: make(map[pairOfUse]time.Time)}
	w.ctx, w.stop = context.WithCancel(context.Background())
	return w
}

// start begins to write, until end.
func (w *useWriter) start() {
	if w.uses == nil {
		return
	}
	w.running.Go(func() {
		for {
			select {
			case u := <-w.waiting:
				w.write(u)
			case <-w.ctx.Done():
				return
			}
		}
	})
}

// end stops writing; what waits is dropped.
func (w *useWriter) end() {
	w.stop()
	w.running.Wait()
}

// note has a use written, unless the same pair was a while ago. It never waits.
func (w *useWriter) note(u queue.Use) {
	if w.uses == nil || !w.isTime(pairOfUse{u.Client, u.Password}, u.Last) {
		return
	}
	select {
	case w.waiting <- u:
	default:
		w.forget(pairOfUse{u.Client, u.Password})
	}
}

func (w *useWriter) isTime(p pairOfUse, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if last, is := w.noted[p]; is && now.Sub(last) < noteEvery {
		return false
	}
	if len(w.noted) >= maxNotedUses {
		clear(w.noted) // each is noted once more
	}
	w.noted[p] = now
	return true
}

func (w *useWriter) forget(p pairOfUse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.noted, p)
}

func (w *useWriter) write(u queue.Use) {
	ctx, cancel := context.WithTimeout(w.ctx, noteTimeout)
	err := w.uses.NoteUse(ctx, u)
	cancel()
	if err == nil {
		w.said = false
		return
	}
	w.forget(pairOfUse{u.Client, u.Password})
	if w.ctx.Err() == nil && !w.said {
		w.said = true
		w.log.Warn("last uses of passwords cannot be noted: postroad secrets list does not show them", "error", err.Error())
	}
}

// noteLogin notes by what a client has logged in.
func (c *conn) noteLogin(x account.Exchange) (password string, isNewest bool) {
	password, isNewest = x.Verifier()
	if password == "" && c.tlsState != nil && len(c.tlsState.PeerCertificates) > 0 {
		sum := sha256.Sum256(c.tlsState.PeerCertificates[0].Raw)
		password = "certificate:" + hex.EncodeToString(sum[:8])
	}
	c.srv.uses.note(queue.Use{Client: c.client, Password: password, Last: time.Now(), Address: c.remote.Addr().String()})
	return password, isNewest
}
