package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Options say which queue to open.
type Options struct {
	// Connect dials the NATS servers. The queue passes options of its own, which must be applied last.
	Connect func(extra ...nats.Option) (*nats.Conn, error)
	Node    string        // name of this process in events and leases; unique in the cluster
	Logger  *slog.Logger  // default slog.Default()
	AckWait time.Duration // how long a silent holder keeps a job; default and minimum in production 30 s

	Replicas int   // copies of each stream, 1 or 3; default 1
	MaxBytes int64 // of stored mail; default 10 GiB. JOBS and LATER may grow to as much each

	// SeenWindow is how long a message is remembered for Seen; default 1 h.
	SeenWindow time.Duration

	// Follow leaves streams and consumers to other processes and waits for them: for a role whose credentials may not
	// make them.
	Follow bool

	// RecreateConsumers lets a consumer that is missing be made anew, although its stream has held messages. All of
	// them are then handed out again: mail may be sent twice. The operator's decision after an incident.
	RecreateConsumers bool

	// leeway is how long any one request may take at the least; for tests, which a disk that stands still for some seconds must not fail.
	leeway time.Duration
}

// DefaultAckWait is longer than the election of a stream leader (5–7 s) by a wide margin.
const DefaultAckWait = 30 * time.Second

// watermark is the share of MAIL's MaxBytes, and of JOBS and LATER together that of one of them, above which ingress refuses new mail.
const watermark = 0.85

// Sentinels of the queue.
var (
	// ErrFull says that the queue is above its watermark or its limit: 452 4.3.1.
	ErrFull = errors.New("the queue is above its watermark")
	// ErrUnavailable says that the queue did not confirm a message: 451 4.3.0. Whether it is stored is unknown.
	ErrUnavailable = errors.New("the queue did not confirm the message")
	// ErrGone says that the mail of a job is no longer there: the job is done.
	ErrGone = errors.New("the mail is gone, its job is done")
	// ErrNotFound says that no message matches.
	ErrNotFound = errors.New("no such message in the queue")
)

// Queue is the shared queue: everything that the roles know of JetStream. It is safe for concurrent use.
type Queue struct {
	o  Options
	nc *nats.Conn // publishes, acknowledgements, pulls and reads
	js jetstream.JetStream
	// A server answers API calls in the read loop of the connection they come on. A listing of hundreds of thousands of
	// subjects takes seconds, so these calls have connections of their own.
	calls *nats.Conn
	lists *nats.Conn

	life     context.Context // of everything in hand; ends when Close gives up waiting
	end      context.CancelFunc
	link     atomic.Pointer[link] // of nc
	callLink atomic.Pointer[link] // of calls
	listLink atomic.Pointer[link] // of lists
	wg       sync.WaitGroup       // background work of the queue itself
	events   *recorder
	hands    hands
	bars     map[string]*barrier
	lines    map[string]*slots // publishes on their way, by stream
	chunks   *slots            // chunks on their way
	slow     slowDomains
	kv       struct{ leases jetstream.KeyValue }

	spender  *spender
	pacer    *pacer
	seenRest atomic.Int64 // unix nanoseconds until which SEEN is left alone
	uses     useNotes
	settled  settledJobs
	back     chan struct{} // the connection was made anew
	rest     time.Duration // settleRest
	patience time.Duration // chunkPatience
	leases   leaseFaults

	full         atomic.Bool
	crowded      atomic.Bool  // of jobs: no mail is made into jobs
	fullAt       atomic.Int64 // unix nanoseconds since when; 0: it is not
	troubles     troubles     // of nc
	callTroubles troubles     // of calls
	listTroubles troubles     // of lists
	idleTroubles troubles     // of nc, as watchLink finds
	refused      repeats      // what servers say besides their answers
	lastOK       atomic.Int64 // unix nanoseconds of the last answer of MAIL's leader
	suspects     suspects
}

// Open connects, brings streams and consumers to their wanted state and starts the queue's own background work.
// Its errors say what is wrong with the given NATS and what to do.
func Open(ctx context.Context, o Options) (*Queue, error) {
	if o.Connect == nil || o.Node == "" {
		return nil, errors.New("queue options need Connect and Node")
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.AckWait == 0 {
		o.AckWait = DefaultAckWait
	}
	if o.Replicas == 0 {
		o.Replicas = 1
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 10 << 30
	}
	if o.SeenWindow == 0 {
		o.SeenWindow = time.Hour
	}
	q := &Queue{o: o, back: make(chan struct{}, 1), rest: settleRest, patience: chunkPatience}
	q.spender = newSpender(bucketStore{casBucket{q, limitBucket}})
	q.spender.leeway = o.leeway
	q.pacer = &pacer{store: casBucket{q, limitBucket}, clock: &q.spender.clock, time: time.Now, pause: sleep, leeway: o.leeway}
	q.life, q.end = context.WithCancel(context.Background())
	for _, c := range []struct {
		nc   **nats.Conn
		link *atomic.Pointer[link]
		name string
	}{{&q.nc, &q.link, ""}, {&q.calls, &q.callLink, " calls"}, {&q.lists, &q.listLink, " lists"}} {
		newLink(c.link)
		var err error
		opts := q.connOptions(c.name, c.link)
		if c.nc == &q.nc {
			opts = append(opts, nats.ReconnectHandler(func(*nats.Conn) { signal(q.back) }))
		}
		if *c.nc, err = q.o.dial(ctx, opts...); err != nil {
			q.closeConns()
			return nil, fmt.Errorf("connect to the queue: %w", err)
		}
	}
	if err := q.open(ctx); err != nil {
		q.end()
		q.wg.Wait()
		q.closeConns()
		return nil, err
	}
	return q, nil
}

func (q *Queue) connOptions(name string, l *atomic.Pointer[link]) []nats.Option {
	return []nats.Option{
		nats.DisconnectErrHandler(func(*nats.Conn, error) { newLink(l) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { q.refused.say(q.o.Logger, err, time.Now()) }),
		// A server that refuses us twice would close the connection for good, and a mistake in accounts.conf end every process.
		nats.IgnoreAuthErrorAbort(),
		nats.Name("postroad " + q.o.Node + name),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectBufSize(-1), // a buffered publish would be sent a second time
		nats.PingInterval(max(2*time.Second, q.o.leeway)),
		nats.MaxPingsOutstanding(2),
		nats.Timeout(max(3*time.Second, q.o.leeway)),
	}
}

// repeats keeps what is said over and over out of the log.
type repeats struct {
	mu   sync.Mutex
	text string
	at   time.Time
}

const repeatEvery = 10 * time.Second

func (r *repeats) say(log *slog.Logger, err error, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if text := err.Error(); text != r.text || now.Sub(r.at) >= repeatEvery {
		r.text, r.at = text, now
		log.Warn("a queue server complains", "error", err)
	}
}

func (q *Queue) closeConns() {
	for _, nc := range []*nats.Conn{q.nc, q.calls, q.lists} {
		if nc != nil {
			nc.Close()
		}
	}
}

// connectPatience is how long Open tries to reach servers that are not there: a whole cluster may be starting.
const connectPatience = 30 * time.Second

func (o *Options) dial(ctx context.Context, extra ...nats.Option) (*nats.Conn, error) {
	deadline := time.Now().Add(connectPatience)
	for {
		nc, err := o.Connect(extra...)
		absent := errors.Is(err, nats.ErrNoServers) || errors.Is(err, nats.ErrTimeout)
		if !absent || time.Now().After(deadline) {
			return nc, err
		}
		o.Logger.Warn("queue servers cannot be reached, trying on", "error", err)
		if err := sleep(ctx, time.Second); err != nil {
			return nil, err
		}
	}
}

func (q *Queue) open(ctx context.Context) error {
	js, err := jetstream.New(q.nc, jetstream.WithDefaultTimeout(max(5*time.Second, q.o.leeway)))
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	q.js = js
	if err := q.checkServer(ctx); err != nil {
		return err
	}
	if err := q.ensure(ctx); err != nil {
		return err
	}
	q.bars = map[string]*barrier{streamMail: {}, streamJobs: {}, streamLater: {}}
	q.lines = map[string]*slots{streamMail: newSlots(lineLength), streamJobs: newSlots(lineLength), streamLater: newSlots(lineLength)}
	q.chunks = newSlots(chunkLine)
	q.hands.m = make(map[string]*hand)
	q.events = newRecorder(q)
	if err := q.listenSlow(); err != nil {
		return fmt.Errorf("listen for slow domains: %w", err)
	}
	q.lastOK.Store(time.Now().UnixNano())
	q.wg.Go(q.keepHands)
	q.wg.Go(q.watchPressure)
	if q.o.Replicas == 1 {
		q.wg.Go(q.watchReturns)
	} else {
		q.wg.Go(func() { q.watchLink(q.nc, &q.idleTroubles, apiTimeout) })
		q.wg.Go(func() { q.watchLink(q.lists, &q.listTroubles, listTimeout) })
	}
	q.wg.Go(func() { q.events.run(q.life) })
	return nil
}

// Close waits for what is in hand until ctx ends, publishes the last events and closes the connection.
func (q *Queue) Close(ctx context.Context) error {
	err := q.hands.wait(ctx)
	q.events.flush(context.WithoutCancel(ctx))
	q.end()
	q.wg.Wait()
	q.closeConns()
	if err != nil {
		return fmt.Errorf("close the queue with work in hand: %w", err)
	}
	return nil
}

// NewID names a message before it is accepted: the Received field carries it.
func (q *Queue) NewID() MessageID { return NewID() }

// Full reports that new mail should be refused with 452. It never blocks.
func (q *Queue) Full() bool { return q.full.Load() }

// Ready is nil while the queue answers; otherwise it says why not.
func (q *Queue) Ready() error {
	if s := q.nc.Status(); s != nats.CONNECTED {
		return fmt.Errorf("connection to the queue is %s", s)
	}
	if d := time.Since(time.Unix(0, q.lastOK.Load())); d > 10*time.Second {
		return fmt.Errorf("the leader of stream %s has not answered for %s", streamMail, d.Round(time.Second))
	}
	return nil
}

// watchPressure keeps Full and Ready current.
func (q *Queue) watchPressure() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		mail, known := q.fillOf(streamMail)
		jobs, jobsKnown := q.fillOf(streamJobs)
		later, laterKnown := q.fillOf(streamLater)
		// All that is ready must find room where it waits, and back: were both full, each job would wait for the room of another one.
		crowded := jobs+later > watermark
		if crowded || jobsKnown && laterKnown {
			q.crowded.Store(crowded)
		}
		full := mail > watermark || crowded // one that is too full is enough, whatever becomes of the others
		if was := q.full.Load(); (full || known && jobsKnown && laterKnown) && was != full {
			q.full.Store(full)
			q.fullAt.Store(0)
			if full {
				q.fullAt.Store(time.Now().UnixNano())
			}
			q.o.Logger.Warn("queue watermark", "full", full)
		}
		select {
		case <-q.life.Done():
			return
		case <-tick.C:
		}
	}
}

// fillOf is how much of its MaxBytes a stream uses; 0 and not known when nobody answers.
func (q *Queue) fillOf(stream string) (share float64, known bool) {
	ctx, cancel := context.WithTimeout(q.life, 4*time.Second)
	defer cancel()
	asked := time.Now()
	info, err := q.streamInfo(ctx, stream, "", 0)
	if err != nil {
		return 0, false
	}
	if stream == streamMail {
		answered := time.Now()
		q.lastOK.Store(answered.UnixNano())
		q.spender.clock.note(info.Time, asked, answered)
	}
	if info.Config.MaxBytes <= 0 {
		return 0, true
	}
	return float64(info.State.Bytes) / float64(info.Config.MaxBytes), true
}

const (
	troubleTime  = 4 * time.Second  // an election takes as long
	forceSpacing = 10 * time.Second // a new connection needs time to show that it is better
)

// troubles counts failed calls in a row on one connection. Each has a count of its own: one that an isolated server keeps is not cured
// by the success of another.
type troubles struct {
	failures   atomic.Int64
	failing    atomic.Int64 // unix nanoseconds of the first of them
	lastForced atomic.Int64 // when the connection was last made anew, whoever counted
}

// troublesOf are the troubles of a connection.
func (q *Queue) troublesOf(nc *nats.Conn) *troubles {
	switch nc {
	case q.calls:
		return &q.callTroubles
	case q.lists:
		return &q.listTroubles
	}
	return &q.troubles
}

// trouble notes how a call on nc ended; see count.
func (q *Queue) trouble(err error) { q.count(q.nc, &q.troubles, err) }

// count notes how a call ended that only a stream's leader answers. An isolated server keeps its clients connected, so when nothing has
// succeeded on a connection for a while it is made anew, to whichever server answers. What was cancelled by us says nothing.
func (q *Queue) count(nc *nats.Conn, t *troubles, err error) {
	if err == nil {
		t.failures.Store(0)
		return
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, nats.ErrDisconnected) || errors.Is(err, nats.ErrConnectionReconnecting) {
		return
	}
	now := time.Now().UnixNano()
	if t.failures.Add(1) == 1 {
		t.failing.Store(now)
	}
	if t.failures.Load() < 3 || now-t.failing.Load() < int64(troubleTime) {
		return
	}
	forced := &q.troublesOf(nc).lastForced
	last := forced.Load()
	if now-last < int64(forceSpacing) || !forced.CompareAndSwap(last, now) {
		return
	}
	t.failures.Store(0)
	if len(nc.Servers()) < 2 && q.o.Replicas == 1 { // else one address may stand for all servers
		return
	}
	q.o.Logger.Warn("queue does not answer, connecting anew", "server", nc.ConnectedServerName(), "error", err)
	if nc.IsConnected() {
		_ = nc.ForceReconnect()
	}
}

// watchLink asks over a connection, once a second, who leads MAIL. A pull that nobody answers is like one for which there is nothing, and an isolated
// server answers direct gets: without a question that only a leader answers, a connection on which little else is done would stay there. Its
// successes are no word of the publishes on nc, which go to other leaders too, so they do not count for those.
func (q *Queue) watchLink(nc *nats.Conn, t *troubles, limit time.Duration) {
	for sleep(q.life, time.Second) == nil {
		var resp struct{}
		_ = q.apiCounted(q.life, nc, t, limit, "STREAM.INFO", streamMail, nil, &resp) // it is counted
	}
}
