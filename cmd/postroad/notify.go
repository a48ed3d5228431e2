package main

import (
	"context"
	"time"
)

// notifyLimit bounds a notice: the change is made already, and everybody polls too.
const notifyLimit = 5 * time.Second

// Topics of notices, see queue.Queue.Notify.
const (
	topicDKIM    = "dkim"    // name: the domain
	topicClients = "clients" // name: the client
	topicTLS     = "tls"     // name: the secret
)

// notify tells the cluster that something was changed, so that it is in force at once. It is best effort: when no server runs, or the notice is lost,
// whoever uses what was changed finds it within half a minute.
func (a *app) notify(topic, name string) {
	client, err := a.client()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), notifyLimit)
	defer cancel()
	_ = client.Notify(ctx, topic, name)
}
