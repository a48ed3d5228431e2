package main

import (
	"errors"
	"fmt"
	"net"
	"net/smtp"
	"net/textproto"
	"strings"
	"time"

	"postroad/cmd/internal/cluster"
	"postroad/cmd/internal/cluster/ledger"
)

// comeBack takes a report to the address that mail came from, as a host does that took the mail and could not deliver it: again and again until
// it is taken.
func (h *harness) comeBack(reversePath, recipient string) {
	if !strings.HasSuffix(reversePath, "@"+cluster.BounceDomain) {
		return // it was sent before there were keys for such addresses
	}
	report := strings.ReplaceAll("From: <mailer-daemon@receiver.chaos.test>\nTo: <"+reversePath+">\nSubject: failed\nMIME-Version: 1.0\n"+
		"Content-Type: multipart/report; report-type=delivery-status; boundary=b\n\n--b\nContent-Type: text/plain\n\nFailed.\n"+
		"--b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; receiver.chaos.test\n\nFinal-Recipient: rfc822; "+recipient+"\n"+
		"Action: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 5.1.1 no such mailbox\n\n--b--\n", "\n", "\r\n")
	h.back.Go(func() {
		again := false
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			targets := h.roles.Ingress()
			err := smtp.SendMail(targets[h.draw(len(targets))], nil, "", []string{reversePath}, []byte(report))
			if err == nil {
				h.book.ComeBack(ledger.Comeback{ID: reversePath, Recipient: recipient, At: time.Now(), Again: again})
				return
			}
			reply, isReply := errors.AsType[*textproto.Error](err)
			if isReply && reply.Code >= 500 {
				h.note(fmt.Sprintf("a report to %s was refused", reversePath), err)
				return
			}
			op, isNet := errors.AsType[*net.OpError](err)
			again = again || !isReply && !(isNet && op.Op == "dial")
		}
	})
}
