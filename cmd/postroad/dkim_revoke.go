package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"postroad/cmd/internal/dkim"
	"postroad/queue"
	"postroad/signer/keyring"
	"postroad/signer/rotation"
)

// dkimRevokeCmd revokes one key.
type dkimRevokeCmd struct {
	dkimMoveCmd `embed:""`
	ForceStale  bool `help:"With --force, do not mind signers that do not reach the source of keys: they may sign with this key for up to a day, and nobody can verify that."`
}

// Run revokes a key.
func (d dkimRevokeCmd) Run(a *app) error { return d.move(a, nil, d.ForceStale) }

// maxSettle bounds the wait for signers.
const maxSettle = time.Minute

// awaitSettled waits until no signer can have a key any more that was retired a moment ago: with its record emptied nobody could verify
// what such a signer makes.
func awaitSettled(a *app, k *dkimKeys, e *keyring.Entry) error {
	rest := min(dkim.Settle(k.config)-time.Since(e.Since()), maxSettle)
	if e.State != keyring.Retiring || rest <= 0 {
		return nil
	}
	a.tell("%s was retired a moment ago, and signers may still sign with it: waiting %s\n", e.Selector, rest.Round(time.Second))
	if !sleepFor(a.ctx, rest) {
		return a.ctx.Err()
	}
	return nil
}

// askStale refuses to revoke a key that some signer may use still, because it does not reach the source of keys and goes on with those in
// memory. Where nobody answers it says that it is not known.
func askStale(a *app, e *keyring.Entry) error {
	client, err := a.client()
	var nodes []queue.Node
	if err == nil {
		ctx, cancel := context.WithTimeout(a.ctx, staleLimit)
		nodes, err = client.Nodes(ctx)
		cancel()
	}
	if err != nil {
		a.tell("whether some signer does not reach its source of keys, and signs with %s for up to a day still, is not known: %v\n", e.Selector, err)
		return nil
	}
	var cut []string
	for _, n := range nodes {
		isCut := func(c queue.Condition) bool {
			return c.Part == "secrets" || c.Part == "signer" && (c.About == "" || c.About == queue.EveryDomain)
		}
		if slices.Contains(n.Roles, "signer") && slices.ContainsFunc(n.Conditions, isCut) {
			cut = append(cut, n.Name)
		}
	}
	if len(cut) > 0 {
		return fmt.Errorf("%s may not hear that %s signs no more, and sign with it for up to a day, which nobody could verify: see postroad status, "+
			"put right what is wrong with secrets, and revoke then; --force-stale does not mind", strings.Join(cut, ", "), e.Selector)
	}
	return nil
}

// staleLimit bounds the question.
const staleLimit = 10 * time.Second

// tellQueued says how much queued mail bears a signature that nobody can verify any more.
func (a *app) tellQueued(e *keyring.Entry) {
	client, err := a.client()
	if err != nil {
		return
	}
	n, err := dkim.Count(client).Queued(a.ctx, e.Domain, e.Selector)
	if name := rotation.Name(e.Domain, e.Selector); err == nil && n > 0 {
		a.tell("%d queued jobs bear its signature, which nobody can verify any more: postroad queue resign --signed-by %s\n", n, name)
	}
}
