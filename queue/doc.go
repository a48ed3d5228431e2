// Package queue is the shared, replicated queue of the cluster and the contract between its roles. It speaks of mail and
// jobs; that it is kept in NATS JetStream is nobody else's business.
//
// Mail is stored once and removed once; what moves is a small job. Every step publishes the next state before it removes
// the old one, so a crash at any point leaves both, and of several jobs of one part the one with the highest move lives.
//
//	q, err := queue.Open(ctx, queue.Options{Connect: server.Connect, Node: "mx1"})
//	id := q.NewID()
//	err = q.Accept(ctx, id, envelope, payload)            // ingress: nil means 250
//	spent, err := q.Spend(ctx, "client/web01", n, limit)  // a limit of the whole cluster
//	id, known, err := q.Seen(ctx, key)                    // was this message accepted before? See Remember
//	err = q.Sign(ctx, 64, func(ctx, s *queue.Signing) …)  // signer
//	err = q.Deliver(ctx, 256, func(ctx, d *queue.Delivery) …)
//	err = q.RunTimers(ctx)                                // delivery role: what waits comes back
//	err = q.RunReconciler(ctx)                            // one at a time in the cluster
//	err = q.Announce(ctx, node)                           // what this process is and what is wrong with it; see Nodes
//	stop, err := q.OnNotice("dkim", func(domain string) …) // somebody changed a key; see Notify
//	q.Lead(ctx, "rotation", func(ctx) …)                  // in one process of the cluster at a time
//
// There is one file for each step of the protocol: accept, sign, take, settle, due, operate, reconcile.
package queue
