package ops

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/queue"
)

const (
	countsAge   = 5 * time.Second // how old counts may be: several scrapers cost no more than one
	countsLimit = 5 * time.Second
)

// collector shows the counts of the queue as metrics. Every process shows the same numbers: take the maximum, not the sum.
type collector struct {
	q      Queue
	logger *slog.Logger

	mu    sync.Mutex
	at    time.Time
	last  queue.Counts
	known bool

	jobs, mails, bytes, limit *prometheus.Desc
}

// NewCollector makes a collector of the queue's counts.
func NewCollector(q Queue, logger *slog.Logger) prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("relay_queue_"+name, help, labels, nil)
	}
	return &collector{
		q:      q,
		logger: logger,
		jobs:   desc("jobs", "Jobs of the whole queue by place, and by delay class when they wait.", "place", "class"),
		mails:  desc("mail_messages", "Messages of the stream MAIL: mails, chunks and marks."),
		bytes:  desc("mail_bytes", "Octets stored in the stream MAIL."),
		limit:  desc("mail_limit_bytes", "Octets that the stream MAIL may hold."),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.jobs, c.mails, c.bytes, c.limit} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. A queue that does not answer has no metrics.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counts, ok := c.counts()
	if !ok {
		return
	}
	gauge := func(d *prometheus.Desc, value uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), labels...)
	}
	gauge(c.mails, counts.Mails)
	gauge(c.bytes, counts.MailBytes)
	gauge(c.limit, counts.MaxBytes)
	gauge(c.jobs, counts.Incoming, string(queue.PlaceIncoming), "")
	gauge(c.jobs, counts.Sign, string(queue.PlaceSign), "")
	gauge(c.jobs, counts.Ready, string(queue.PlaceReady), "")
	gauge(c.jobs, counts.Held, string(queue.PlaceHeld), "")
	for class, n := range counts.Later {
		gauge(c.jobs, n, string(queue.PlaceLater), string(class))
	}
}

func (c *collector) counts() (queue.Counts, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known && time.Since(c.at) < countsAge {
		return c.last, true
	}
	ctx, cancel := context.WithTimeout(context.Background(), countsLimit)
	defer cancel()
	counts, err := c.q.Counts(ctx)
	if err != nil {
		c.logger.Warn("queue not counted", "err", err)
		c.known = false
		return queue.Counts{}, false
	}
	c.at, c.last, c.known = time.Now(), counts, true
	return counts, true
}
