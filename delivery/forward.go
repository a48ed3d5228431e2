package delivery

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"time"

	"postroad/delivery/bounce"
	"postroad/queue"
	"postroad/queue/failpoint"
	"postroad/queue/verp"
)

// forwardLimit bounds what is told to a sender of one mail: whoever got the mail has its address for bounces, and may send there what he likes.
var forwardLimit = queue.Limit{Count: 20, Window: 24 * time.Hour}

// forward tells the sender what a host has reported, in a notification of our own: what came back may claim to be from anybody, and this
// one is signed. He gave his mail to us, so the promise of RFC 3461 §5.2.2, that he hears of it if something goes wrong, is ours to keep.
func (c *comeback) forward(ctx context.Context, token verp.Token, origin queue.Origin, recipients []bounce.Recipient) error {
	b := c.w.o.Bounces
	if !b.Forward || origin.Sender.IsNull() {
		return nil
	}
	told := recipients[:0:0]
	for _, r := range recipients {
		if !r.Path.IsNull() {
			told = append(told, r)
		}
	}
	if len(told) == 0 {
		return nil
	}
	spent, err := b.Origins.Spend(ctx, "comeback/"+string(token.ID), 1, forwardLimit)
	if err != nil {
		return fmt.Errorf("forward to the sender of %s: %w", token.ID, err)
	}
	if !spent.OK {
		c.w.o.Logger.Warn("too many reports of one mail came back, its sender is not told of all", "msg_id", token.ID)
		return nil
	}
	failpoint.Hit("comeback.spent")
	key := "back " + string(token.ID) + "\n" + notificationKey(told)
	sum := sha256.Sum256([]byte(key))
	var original io.Reader // not a nil *bytes.Reader in it
	if c.report.Header != nil {
		original = bytes.NewReader(c.report.Header)
	}
	payload, err := bounce.Report{
		ID:         string(token.ID),
		UniqueID:   fmt.Sprintf("%s.%d.%s", c.job.ID, c.job.Part, hex.EncodeToString(sum[:6])),
		Hostname:   c.w.o.Hostname,
		Domain:     c.w.o.Domain,
		To:         origin.Sender,
		Date:       c.now,
		Arrival:    token.ID.Time(),
		ENVID:      bounce.EncodeXtext(c.report.ENVID),
		Recipients: told,
		SMTPUTF8:   origin.Sender.NeedsSMTPUTF8(),
		Original:   original,
		Size:       int64(len(c.report.Header)),
	}.Write()
	if err != nil {
		return fmt.Errorf("write to the sender of %s: %w", token.ID, err)
	}
	c.notify = append(c.notify, queue.Notification{
		Key: key,
		Envelope: queue.Envelope{
			Recipients: []queue.Recipient{{Path: origin.Sender, Notify: []string{"NEVER"}}},
			Flags:      queue.Flags{SMTPUTF8: origin.Sender.NeedsSMTPUTF8(), RequireTLS: origin.RequireTLS},
			Client:     origin.Client,
			HeaderFrom: c.w.o.Domain,
			Accepted:   c.now,
			Maker:      c.job.ID,
		},
		Payload: payload,
	})
	return nil
}
