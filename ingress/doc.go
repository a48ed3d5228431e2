// Package ingress receives mail over SMTP and hands it to the queue.
//
// go-smtp keeps the order of commands and runs the sessions; between it and
// the client stands our own guard (conn), which frames the input, holds the
// deadlines and limits, does STARTTLS, reads message content strictly and
// gathers the replies of a pipelined burst into one write. A 250 to the end of
// a message is said only after Queue.Accept returned nil.
//
//	s, err := ingress.New(ingress.Options{
//		Queue:     q,
//		Hostname:  "relay.example.com",
//		Listeners: []ingress.Listener{{Address: ":2525", TrustedNetworks: networks}},
//	})
//	s.Start()
//	defer s.Stop(ctx) // 421 to idle clients, running transactions end first
//
// The life of a line: conn.Read frames it (conn.go), interpret reads it and
// gives go-smtp a plain form (command.go, params.go), session decides
// (session.go); content goes through the strict readers (content.go), the
// header scanner (header.go) and the payload (payload.go) to the queue.
package ingress
