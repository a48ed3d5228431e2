// Package throttle keeps the limits of egress paths for the whole cluster: how many connections there are to a site, and at what pace mail
// goes there, over all delivery processes.
//
//	rules, err := throttle.NewRules(configured)
//	limits := rules.For(throttle.Query{Domain: "example.net", Site: "mx.example.net", Hosts: hosts, Source: "out-1"})
//
//	slots, err := throttle.NewSlots(throttle.Shared(q), granted) // leases of connections
//	slots.Need(limits.Path, throttle.Need{Limit: limits.Connections, Use: 1, Want: 3})
//	pacer := throttle.NewPacer(throttle.Shared(q))               // turns to send
//	delay, err := pacer.Turn(ctx, limits.Path, limits.Rate)
//
// What is leased lies in the queue, so that processes may come and go. Without an answer of the queue nothing is sent beyond what is leased.
package throttle

import (
	"context"
	"time"

	"postroad/queue"
)

// Member is this process among those that share slots; *queue.Member is one. See there.
type Member interface {
	Life() context.Context
	Claim(ctx context.Context, life context.Context, key string, c queue.Claim) (queue.Claimed, error)
	Members() int
	Leave(ctx context.Context)
}

// Cluster is what a throttle needs of the queue; Shared makes one of a *queue.Queue. See there.
type Cluster interface {
	Board
	Slotter
	Pace
}

// Slotter shares slots.
type Slotter interface {
	Join(heard func(key string)) (Member, error)
}

// Pace gives turns.
type Pace interface {
	Reserve(ctx context.Context, key string, n int, r queue.Rate, within time.Duration) (queue.Turns, error)
}

// Shared is the cluster behind a queue.
func Shared(q *queue.Queue) Cluster { return shared{q} }

type shared struct{ *queue.Queue }

func (s shared) Join(heard func(key string)) (Member, error) {
	m, err := s.Queue.Join(heard)
	if err != nil {
		return nil, err
	}
	return m, nil
}
