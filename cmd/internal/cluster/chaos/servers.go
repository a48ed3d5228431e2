package main

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postroad/cmd/internal/cluster"
	"postroad/cmd/internal/cluster/ledger"
)

// election is how long the servers may need to agree after a fault is over.
const election = 10 * time.Second

// breakServers does one thing after the other to the queue servers, with a
// pause in which they can find each other again.
func (h *harness) breakServers(ctx context.Context) {
	kinds := []func(context.Context, int){h.killServer, h.killServer, h.freezeServer, h.isolateServer, h.isolateServer, h.stepDown, h.killAllServers}
	for sleep(ctx, time.Duration(2000+h.draw(6000))*time.Millisecond) {
		i := h.draw(cluster.Copies)
		if h.draw(2) == 0 {
			i = h.leader(ctx, i)
		}
		kinds[h.draw(len(kinds))](ctx, i)
	}
}

func (h *harness) serverFault(kind ledger.FaultKind, i int, note string) ledger.Fault {
	f := h.fault(kind, h.servers.All()[i].Name)
	f.Note = note
	h.away(1)
	return f
}

func (h *harness) over(f ledger.Fault) {
	f.Until = time.Now().Add(election)
	h.record(f)
	h.watch.Go(func() {
		time.Sleep(election)
		h.away(-1)
	})
}

// killServer kills a server; half of the time it stays away for a while.
func (h *harness) killServer(ctx context.Context, i int) {
	f := h.serverFault(ledger.FaultKill, i, "")
	if h.draw(2) == 0 {
		h.servers.All()[i].Kill()
	} else {
		release := h.servers.All()[i].KillAndHold()
		sleep(ctx, h.upTo(10*time.Second))
		release()
	}
	h.over(f)
}

func (h *harness) killAllServers(context.Context, int) {
	f := h.serverFault(ledger.FaultKill, 0, "and all others")
	for _, s := range h.servers.All() {
		s.Kill()
	}
	h.over(f)
}

func (h *harness) freezeServer(ctx context.Context, i int) {
	f := h.serverFault(ledger.FaultStop, i, "")
	if err := h.servers.All()[i].Freeze(); err != nil {
		h.note("freeze", err)
	}
	sleep(ctx, h.upTo(15*time.Second))
	if err := h.servers.All()[i].Thaw(); err != nil {
		h.note("thaw", err)
	}
	h.over(f)
}

func (h *harness) isolateServer(ctx context.Context, i int) {
	clients := h.draw(2) == 0
	f := h.serverFault(ledger.FaultCut, i, fmt.Sprintf("clients too: %v", clients))
	h.servers.Isolate(i, clients)
	sleep(ctx, h.upTo(15*time.Second))
	h.servers.Rejoin(i)
	h.over(f)
}

// stepDown lets the leader of a stream give up.
func (h *harness) stepDown(ctx context.Context, i int) {
	stream := []string{"MAIL", "JOBS", "LATER"}[h.draw(3)]
	f := h.serverFault(ledger.FaultStop, i, "leader of "+stream+" steps down")
	err := h.asAdmin(ctx, func(ctx context.Context, nc *nats.Conn) error {
		_, err := nc.RequestWithContext(ctx, "$JS.API.STREAM.LEADER.STEPDOWN."+stream, nil)
		return err
	})
	if err != nil && h.o.verbose {
		h.note("step down", err)
	}
	h.over(f)
}

func (h *harness) upTo(most time.Duration) time.Duration {
	return time.Duration(h.draw(int(most/time.Millisecond))) * time.Millisecond
}

// leader is the server that leads the stream of mail, or i when nobody knows.
func (h *harness) leader(ctx context.Context, i int) int {
	_ = h.asAdmin(ctx, func(ctx context.Context, nc *nats.Conn) error {
		js, err := jetstream.New(nc)
		if err != nil {
			return err
		}
		st, err := js.Stream(ctx, "MAIL")
		if err != nil {
			return err
		}
		for n, s := range h.servers.All() {
			if c := st.CachedInfo().Cluster; c != nil && c.Leader == s.Name {
				i = n
			}
		}
		return nil
	})
	return i
}

func (h *harness) asAdmin(ctx context.Context, f func(context.Context, *nats.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	nc, err := h.servers.Connect(cluster.UserAdmin)
	if err != nil {
		return err
	}
	defer nc.Close()
	return f(ctx, nc)
}
