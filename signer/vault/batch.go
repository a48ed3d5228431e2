package vault

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Vault makes the signatures of one request one after the other. So what has
// gathered leaves when the request before it is back, or, once it is enough to
// keep another of Vault's cores busy, at once.
const (
	maxBatch    = 256 // signatures in one request
	enough      = 32  // signatures that leave beside another request for the same key
	maxRunning  = 4   // requests at a time for one key
	maxRequests = 16  // and for all keys
)

// errStopped is what ends a signature that is wanted after the end of the client.
var errStopped = fmt.Errorf("%w: the client was stopped", ErrUnavailable)

// batcher sends signatures that are wanted at the same time in one request. It
// knows keys only while signatures of theirs are wanted, and as many signatures
// as there are callers that wait for one.
type batcher struct {
	client *Client
	sizes  prometheus.Histogram

	mu       sync.Mutex
	lines    map[lineID]*line
	turn     []*line // have something to send, and maxRequests are on their way
	requests int     // on their way
}

// lineID is what the signatures of one request have in common: Vault takes the
// version from the request, and heeds none of a single signature.
type lineID struct {
	path    string
	version int
	rsa     bool
}

// line is the signatures of one version of a key.
type line struct {
	id      lineID
	waiting []*wish
	running int // requests
	inTurn  bool
}

// wish is a signature that is wanted.
type wish struct {
	input     []byte
	done      chan struct{} // closed when one of these is set
	signature []byte
	err       error
}

func newBatcher(c *Client) *batcher {
	return &batcher{client: c, lines: make(map[lineID]*line), sizes: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "relay_vault_transit_batch_signatures", Help: "Signatures in one request to the transit engine.",
		Buckets: prometheus.ExponentialBuckets(1, 2, 9),
	})}
}

// sign waits for a signature, until ctx ends. It is not wanted any more then; a
// request that has left with it goes on for the others.
func (b *batcher) sign(ctx context.Context, id lineID, input []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, explain(ctx, "sign with", id.path, err)
	}
	w := &wish{input: input, done: make(chan struct{})}
	b.mu.Lock()
	l := b.lines[id]
	if l == nil {
		l = &line{id: id}
		b.lines[id] = l
	}
	l.waiting = append(l.waiting, w)
	b.move(l, false)
	b.mu.Unlock()
	select {
	case <-w.done:
		return w.signature, w.err
	case <-ctx.Done():
		b.mu.Lock()
		l.waiting = slices.DeleteFunc(l.waiting, func(other *wish) bool { return other == w })
		b.forget(l)
		b.mu.Unlock()
		return nil, explain(ctx, "sign with", id.path, ctx.Err())
	}
}

// move sends what may leave now; the next one may when a request has come back.
// b.mu is held.
func (b *batcher) move(l *line, isBack bool) {
	for len(l.waiting) > 0 && l.running < maxRunning && (l.running == 0 || isBack || len(l.waiting) >= enough) {
		isBack = false
		if b.requests >= maxRequests {
			if !l.inTurn {
				l.inTurn = true
				b.turn = append(b.turn, l)
			}
			return
		}
		n := min(len(l.waiting), maxBatch)
		batch := slices.Clone(l.waiting[:n])
		l.waiting = slices.Delete(l.waiting, 0, n)
		l.running++
		b.requests++
		sent := b.client.spawn(func() {
			b.send(l.id, batch)
			b.back(l)
		})
		if !sent {
			l.running--
			b.requests--
			failAll(batch, fmt.Errorf("sign with %s: %w", l.id.path, errStopped))
		}
	}
	b.forget(l)
}

// back notes that a request has come back: first those move that wait longest.
func (b *batcher) back(l *line) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.running--
	b.requests--
	for len(b.turn) > 0 && b.requests < maxRequests {
		next := b.turn[0]
		b.turn = slices.Delete(b.turn, 0, 1)
		next.inTurn = false
		b.move(next, true)
	}
	b.move(l, true)
}

// forget drops a line of which nothing is wanted. b.mu is held.
func (b *batcher) forget(l *line) {
	if len(l.waiting) == 0 && l.running == 0 && !l.inTurn && b.lines[l.id] == l {
		delete(b.lines, l.id)
	}
}

// failAll ends wishes with an error that concerns all of them.
func failAll(batch []*wish, err error) {
	for _, w := range batch {
		w.err = err
		close(w.done)
	}
}

// result is what Vault says to one signature. Its status is 200 also when it has
// refused some of them, or all.
type result struct {
	Signature string `json:"signature"` // vault:v<version>:<base64>
	Error     string `json:"error"`
	Reference string `json:"reference"` // what the request has named it; an old Vault says nothing
}

// send sends a batch and hands out what comes back.
func (b *batcher) send(id lineID, batch []*wish) {
	b.sizes.Observe(float64(len(batch)))
	inputs := make([]map[string]any, len(batch))
	for i, w := range batch {
		inputs[i] = map[string]any{"input": base64.StdEncoding.EncodeToString(w.input), "reference": strconv.Itoa(i)}
	}
	r := call{method: http.MethodPut, path: id.path, body: map[string]any{"key_version": id.version, "batch_input": inputs}}
	if id.rsa {
		r.path += "/sha2-256"
		r.body["prehashed"] = true
		r.body["signature_algorithm"] = "pkcs1v15" // Vault's default is PSS
	}
	ctx := b.client.ctx
	got, err := b.client.do(ctx, "sign with", r)
	var data struct {
		Results []result `json:"batch_results"`
	}
	if err == nil {
		err = decode(got.Data, &data)
	}
	if err == nil && len(data.Results) != len(batch) {
		err = fmt.Errorf("%w: %d results for %d signatures", errNoAnswer, len(data.Results), len(batch))
	}
	if errors.Is(err, errNoAnswer) {
		err = explain(ctx, "sign with", r.path, err)
	}
	if err != nil {
		failAll(batch, err)
		return
	}
	for i, w := range batch {
		w.signature, w.err = data.Results[i].read(i, id.version)
		switch {
		case errors.Is(w.err, errNoAnswer):
			w.err = explain(ctx, "sign with", r.path, w.err)
		case w.err != nil:
			w.err = fmt.Errorf("sign with %s: %w", r.path, w.err)
		}
		close(w.done)
	}
}

// read reads the result of the signature with this number in its request.
func (r *result) read(number, version int) ([]byte, error) {
	if r.Reference != "" && r.Reference != strconv.Itoa(number) {
		return nil, fmt.Errorf("%w: result %d is that of another signature", errNoAnswer, number)
	}
	if r.Error != "" {
		return nil, fmt.Errorf("vault refuses it (%s)", brief(r.Error))
	}
	encoded, ok := strings.CutPrefix(r.Signature, fmt.Sprintf("vault:v%d:", version))
	signature, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || encoded == "" {
		return nil, fmt.Errorf("%w: no signature by version %d", errNoAnswer, version)
	}
	return signature, nil
}

// spawn runs fn until Stop at the longest, which waits for it. It reports false
// after Stop.
func (c *Client) spawn(fn func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return false
	}
	c.wg.Go(fn)
	return true
}

// patience is how long a signature is waited for at most: a request
// that is on its way, the own one, and a login between them.
func (b *batcher) patience() time.Duration { return 3 * b.client.o.Timeout }
