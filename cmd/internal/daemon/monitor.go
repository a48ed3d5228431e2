package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	monitorTimeout = 5 * time.Second
	maxMonitorBody = 1 << 20
)

// checkMonitors asks each server of an outside queue whether it syncs every write: without that a power cut takes back what was
// answered with 250. A server that does not answer is no reason to stay away, the other two are enough to work.
func (d *Daemon) checkMonitors(ctx context.Context) error {
	if len(d.c.Queue.Monitor) == 0 {
		d.log.Warn("queue.monitor is not set: it cannot be seen whether the queue's servers sync every write (sync_interval: always)")
	}
	for _, url := range d.c.Queue.Monitor {
		s, err := askMonitor(ctx, url)
		switch {
		case err != nil:
			d.log.Warn("a queue server does not tell whether it syncs every write", "monitor", url, "err", err)
		case s.JetStream.Config == nil:
			return fmt.Errorf("the queue server %s (%s) has no JetStream: set `jetstream { … }` in its configuration", s.Name, url)
		case !s.JetStream.Config.SyncAlways:
			return fmt.Errorf("the queue server %s (%s) syncs every %v only, so a power cut loses mail that was accepted: "+
				"set `sync_interval: always` in its jetstream section and restart it", s.Name, url, s.JetStream.Config.SyncInterval)
		}
	}
	return nil
}

// serverState is what we read of a server's /varz.
type serverState struct {
	Name      string `json:"server_name"`
	JetStream struct {
		Config *struct {
			SyncAlways   bool          `json:"sync_always"`
			SyncInterval time.Duration `json:"sync_interval"`
		} `json:"config"`
	} `json:"jetstream"`
}

func askMonitor(ctx context.Context, url string) (*serverState, error) {
	ctx, cancel := context.WithTimeout(ctx, monitorTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(url, "/")+"/varz", nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", req.URL, resp.Status)
	}
	var s serverState
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxMonitorBody)).Decode(&s); err != nil {
		return nil, fmt.Errorf("read %s: %w", req.URL, err)
	}
	return &s, nil
}
