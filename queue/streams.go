package queue

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	eventsAge      = 7 * 24 * time.Hour
	eventsMaxBytes = 2 << 30
	limitMaxBytes  = 128 << 20
	seenMaxBytes   = 64 << 20 // as the server counts: 740,000 messages, for which it takes 270 MB of memory
	maxAckPending  = 4096     // far above the windows of all roles together
	leaseBucket    = "leases"
	limitBucket    = "limits"
	nodeBucket     = "nodes"
	useBucket      = "uses"
	nodesMaxBytes  = 16 << 20 // in memory

	minServerMajor, minServerMinor = 2, 14
)

// StoreBytes is how much a server must allow JetStream for a queue with this MaxBytes.
func StoreBytes(maxBytes int64) int64 { return 3*maxBytes + eventsMaxBytes + suppressMaxBytes + 1<<30 }

const (
	signerConsumer = "signer" // of MAIL
	signConsumer   = "sign"   // of JOBS: what goes through the signer again
)

func laneConsumer(lane string) string { return "lane-" + lane }
func timerConsumer(c Class) string    { return "timer-" + string(c) }

// durable is one consumer that the queue rests on.
type durable struct {
	stream, name string
	filters      []string
}

func durables() []durable {
	ds := []durable{
		{streamMail, signerConsumer, []string{"mail.*.m", "dsn.*.m"}},
		{streamJobs, signConsumer, []string{"sign.>"}},
	}
	for _, lane := range allLanes() {
		ds = append(ds, durable{streamJobs, laneConsumer(lane), []string{"ready." + lane + ".>"}})
	}
	for _, c := range classes {
		ds = append(ds, durable{streamLater, timerConsumer(c.name), []string{"later." + string(c.name) + ".>"}})
	}
	return ds
}

func (q *Queue) streamConfigs() []jetstream.StreamConfig {
	kept := func(name string, retention jetstream.RetentionPolicy, subjects ...string) jetstream.StreamConfig {
		return jetstream.StreamConfig{
			Name:        name,
			Subjects:    append(subjects, "bar."+strings.ToLower(name)+".*"),
			Retention:   retention,
			Discard:     jetstream.DiscardNew,
			MaxBytes:    q.o.MaxBytes,
			Storage:     jetstream.FileStorage,
			Replicas:    q.o.Replicas,
			Duplicates:  dedupWindow,
			AllowDirect: true,
			// Nothing is stored twice under one subject but the markers, of which only the last counts. Roll-up would
			// do the same, and let anyone who may publish wipe the stream.
			MaxMsgsPerSubject: 1,
		}
	}
	return []jetstream.StreamConfig{
		kept(streamMail, jetstream.LimitsPolicy, "mail.>", "dsn.>"),
		kept(streamJobs, jetstream.WorkQueuePolicy, "ready.>", "sign.>"),
		kept(streamLater, jetstream.WorkQueuePolicy, "later.>", "held.>"),
		{
			Name:        streamEvents,
			Subjects:    []string{"events.*"},
			Retention:   jetstream.LimitsPolicy,
			Discard:     jetstream.DiscardOld,
			MaxBytes:    eventsMaxBytes,
			MaxAge:      eventsAge,
			Storage:     jetstream.FileStorage,
			Replicas:    q.o.Replicas,
			AllowDirect: true,
		},
		{
			Name:              streamSeen,
			Subjects:          []string{"seen.*"},
			Retention:         jetstream.LimitsPolicy,
			Discard:           jetstream.DiscardOld,
			MaxBytes:          seenMaxBytes,
			MaxMsgsPerSubject: 1,
			MaxAge:            q.o.SeenWindow,
			Storage:           jetstream.MemoryStorage, // no sync; see Seen
			Replicas:          q.o.Replicas,
			AllowDirect:       true,
		},
	}
}

// bucketConfigs are the buckets, whose keys end by themselves.
func (q *Queue) bucketConfigs() []jetstream.KeyValueConfig {
	bucket := func(name string, maxBytes int64) jetstream.KeyValueConfig {
		return jetstream.KeyValueConfig{Bucket: name, History: 1, Replicas: q.o.Replicas, Storage: jetstream.FileStorage,
			LimitMarkerTTL: time.Minute, MaxBytes: maxBytes}
	}
	return []jetstream.KeyValueConfig{bucket(leaseBucket, 64<<20), bucket(limitBucket, limitMaxBytes)}
}

// sideBuckets are those without which mail flows all the same: what people want to know, whom not to write to, and what
// delivery keeps.
func (q *Queue) sideBuckets() []jetstream.KeyValueConfig {
	nodes := jetstream.KeyValueConfig{Bucket: nodeBucket, History: 1, Replicas: q.o.Replicas, Storage: jetstream.MemoryStorage,
		LimitMarkerTTL: time.Minute, MaxBytes: nodesMaxBytes}
	uses := nodes
	uses.Bucket, uses.Storage, uses.MaxBytes = useBucket, jetstream.FileStorage, usesMaxBytes
	suppressions := uses
	suppressions.Bucket, suppressions.MaxBytes = suppressBucket, suppressMaxBytes
	kept := uses
	kept.Bucket, kept.MaxBytes = keptBucket, keptMaxBytes
	tallies := kept
	tallies.Bucket = tallyBucket
	sites := uses
	sites.Bucket, sites.MaxBytes = siteBucket, sitesMaxBytes
	bounces := nodes
	bounces.Bucket, bounces.MaxBytes = bounceBucket, bounceMaxBytes
	keys := uses
	keys.Bucket, keys.MaxBytes = keyBucket, keysMaxBytes
	return []jetstream.KeyValueConfig{nodes, uses, suppressions, kept, tallies, sites, bounces, keys}
}

// checkServer refuses a NATS on which the promise cannot be kept.
func (q *Queue) checkServer(ctx context.Context) error {
	v := q.nc.ConnectedServerVersion()
	parts := strings.SplitN(v, ".", 3)
	if len(parts) == 3 {
		major, _ := strconv.Atoi(parts[0])
		minor, _ := strconv.Atoi(parts[1])
		if major < minServerMajor || major == minServerMajor && minor < minServerMinor {
			return fmt.Errorf("NATS server %s is version %s, too old: postroad needs %d.%d or newer; upgrade the server",
				q.nc.ConnectedUrlRedacted(), v, minServerMajor, minServerMinor)
		}
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		try, cancel := q.onLink(ctx, apiTimeout)
		_, err := q.js.AccountInfo(try)
		cancel()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
			return fmt.Errorf("NATS server %s has no JetStream for this account: set `jetstream { … }` in its configuration and enable it for the account",
				q.nc.ConnectedUrlRedacted())
		case time.Now().After(deadline) || ctx.Err() != nil:
			return fmt.Errorf("ask NATS server %s for its JetStream: %w", q.nc.ConnectedUrlRedacted(), err)
		}
		sleep(ctx, 500*time.Millisecond)
	}
}

// ensure brings streams and consumers to their wanted state. While a cluster is still electing its leaders it waits.
func (q *Queue) ensure(ctx context.Context) error {
	needed, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	step := q.makeNeeded
	if q.o.Follow {
		step = q.follow
	}
	if err := step(needed); err != nil {
		return err
	}
	if err := q.openLeases(needed); err != nil {
		return err
	}
	q.ensureSideBuckets(ctx) // in their own time
	q.ensureSlots(ctx)
	return nil
}

// makeNeeded makes what the queue rests on.
func (q *Queue) makeNeeded(ctx context.Context) error {
	for _, c := range q.streamConfigs() {
		if err := q.untilReady(ctx, func(ctx context.Context) error { return q.ensureStream(ctx, c) }); err != nil {
			return fmt.Errorf("stream %s: %w", c.Name, err)
		}
	}
	for _, d := range durables() {
		if err := q.untilReady(ctx, func(ctx context.Context) error { return q.ensureConsumer(ctx, d) }); err != nil {
			return fmt.Errorf("consumer %s of stream %s: %w", d.name, d.stream, err)
		}
	}
	for _, c := range q.bucketConfigs() {
		err := q.untilReady(ctx, func(ctx context.Context) error {
			_, err := q.js.CreateOrUpdateKeyValue(ctx, c)
			return err
		})
		if err != nil {
			return fmt.Errorf("bucket %s: %w", c.Bucket, err)
		}
	}
	return nil
}

func (q *Queue) ensureSideBuckets(ctx context.Context) {
	if q.o.Follow {
		q.eachSideBucket(ctx, sideWait, func(ctx context.Context, c jetstream.KeyValueConfig) error {
			_, err := q.streamInfo(ctx, "KV_"+c.Bucket, "", 0)
			return err
		})
		return
	}
	q.eachSideBucket(ctx, sideMake, func(ctx context.Context, c jetstream.KeyValueConfig) error {
		_, err := q.js.CreateOrUpdateKeyValue(ctx, c)
		return err
	})
}

// How long a process tries to make each side bucket, or waits for it. Where an older version made the cluster they are missing until its
// managing process is upgraded, and the others must start all the same.
const (
	sideMake = 20 * time.Second
	sideWait = 5 * time.Second
)

// ensureSlots makes the bucket of slots, or waits for it. Ingress and signer need none, so that a process starts without it; a delivery
// process sends nothing then.
func (q *Queue) ensureSlots(ctx context.Context) {
	wait := sideMake
	if q.o.Follow {
		wait = sideWait
	}
	try, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	ensure := func() error {
		if q.o.Follow {
			_, err := q.streamInfo(try, "KV_"+slotBucket, "", 0)
			return err
		}
		return q.ensureStream(try, q.slotStream())
	}
	err := ensure()
	for err != nil && sleep(try, 300*time.Millisecond) == nil {
		err = ensure()
	}
	if err != nil {
		q.o.Logger.Warn("the bucket is missing that limits of delivery are kept in; until it is there delivery processes send nothing", "bucket", slotBucket, "err", err)
	}
}

// eachSideBucket makes the side buckets, or waits for them, and goes on without those that cannot be had.
func (q *Queue) eachSideBucket(ctx context.Context, wait time.Duration, fn func(context.Context, jetstream.KeyValueConfig) error) {
	for _, c := range q.sideBuckets() {
		try, cancel := context.WithTimeout(ctx, wait)
		err := fn(try, c)
		for err != nil && sleep(try, 300*time.Millisecond) == nil {
			err = fn(try, c)
		}
		cancel()
		if err != nil {
			q.o.Logger.Warn("a bucket is missing, suppressions are not known or `postroad status` does not know everything; mail flows all the same", "bucket", c.Bucket, "err", err)
		}
	}
}

func (q *Queue) openLeases(ctx context.Context) (err error) {
	if q.kv.leases, err = q.js.KeyValue(ctx, leaseBucket); err != nil {
		return fmt.Errorf("bucket %s: %w", leaseBucket, err)
	}
	return nil
}

// follow waits until another process has made everything that the queue rests on.
func (q *Queue) follow(ctx context.Context) error {
	for _, c := range q.streamConfigs() {
		err := q.persist(ctx, "wait for stream "+c.Name, func(ctx context.Context) error {
			info, err := q.streamInfo(ctx, c.Name, "", 0)
			if err == nil && info.Config.Replicas < c.Replicas {
				return &finalError{fmt.Errorf("it has %d copy where queue.replicas is %d: %w", info.Config.Replicas, c.Replicas, errTooFewCopies)}
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("%w; a process with queue.manage: true makes the streams: is one running?", err)
		}
	}
	for _, d := range durables() {
		err := q.persist(ctx, "wait for consumer "+d.name, func(ctx context.Context) error {
			_, err := q.ackFloor(ctx, d.stream, d.name)
			return err
		})
		if err != nil {
			return err
		}
	}
	for _, c := range q.bucketConfigs() {
		err := q.persist(ctx, "wait for bucket "+c.Bucket, func(ctx context.Context) error {
			_, err := q.streamInfo(ctx, "KV_"+c.Bucket, "", 0)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// untilReady repeats fn while the failure looks like a cluster that is still finding its leaders.
func (q *Queue) untilReady(ctx context.Context, fn func(context.Context) error) error {
	for {
		try, cancel := q.onLink(ctx, apiTimeout)
		err := fn(try)
		cancel()
		if err == nil {
			return nil
		}
		if e, ok := errors.AsType[*jetstream.APIError](err); ok && e.Code != 503 && e.Code != 500 {
			return err
		}
		if errors.Is(err, errConsumerLost) || errors.Is(err, errTooFewCopies) || errors.Is(err, errNoMemory) || ctx.Err() != nil {
			return err
		}
		if sleep(ctx, 300*time.Millisecond) != nil {
			return err
		}
	}
}

var (
	errTooFewCopies = errors.New("a lost machine would lose acknowledged mail")
	errNoMemory     = errors.New("repeats of a message are remembered there")
)

func (q *Queue) ensureStream(ctx context.Context, c jetstream.StreamConfig) error {
	s, err := q.js.CreateOrUpdateStream(ctx, c)
	if hasCode(err, codeNoMemory) || c.Storage == jetstream.MemoryStorage && hasCode(err, codeNoPeers) && strings.Contains(err.Error(), "insufficient storage") {
		return fmt.Errorf("the NATS server gives it no memory (%v): %w: set `max_memory_store: 256MB` in its `jetstream { … }`", err, errNoMemory)
	}
	if hasCode(err, codeNoCopies) {
		return fmt.Errorf("%d copies are configured, but this NATS server stands alone (%v), so %w: give the servers of a cluster in queue.urls, or set queue.replicas: 1",
			c.Replicas, err, errTooFewCopies)
	}
	if err != nil {
		return err
	}
	if got := s.CachedInfo().Config.Replicas; got < c.Replicas {
		return fmt.Errorf("it has %d copy where queue.replicas is %d: %w; see `nats stream cluster`", got, c.Replicas, errTooFewCopies)
	}
	return nil
}

var errConsumerLost = errors.New("the consumer is missing although its stream has held messages")

func (q *Queue) ensureConsumer(ctx context.Context, d durable) error {
	cfg := jetstream.ConsumerConfig{
		Durable:       d.name,
		DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       q.o.AckWait,
		MaxDeliver:    -1,
		MaxAckPending: maxAckPending,
		MaxWaiting:    2048,
		Replicas:      q.o.Replicas,
	}
	if len(d.filters) == 1 {
		cfg.FilterSubject = d.filters[0]
	} else {
		cfg.FilterSubjects = d.filters
	}
	_, err := q.js.UpdateConsumer(ctx, d.stream, cfg)
	if !errors.Is(err, jetstream.ErrConsumerDoesNotExist) && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return err
	}
	info, err := q.streamInfo(ctx, d.stream, "", 0)
	if err != nil {
		return err
	}
	if info.State.LastSeq > 0 && !q.o.RecreateConsumers {
		return fmt.Errorf("%w: a new one would hand out finished work again and mail would be sent twice; if you accept that, start once with --recreate-consumers", errConsumerLost)
	}
	_, err = q.js.CreateConsumer(ctx, d.stream, cfg)
	if errors.Is(err, jetstream.ErrConsumerExists) {
		return nil // another process was quicker
	}
	return err
}

// sleep waits, or returns ctx's error.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
