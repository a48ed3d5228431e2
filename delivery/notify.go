package delivery

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"postroad/delivery/bounce"
	"postroad/queue"
	"postroad/queue/address"
)

// notify adds to a decision the notification that it calls for: one for each settlement, whatever it reports. What becomes of mail with
// the null reverse-path is told to nobody (RFC 5321 §4.5.5) but the operator's mailbox for that, if he has named one.
func (w *Worker) notify(ctx context.Context, job queue.Job, m mail, d *decision, now time.Time) error {
	to, reports := w.whomToTell(job, *d)
	if len(reports) == 0 {
		return nil
	}
	original, err := m.Open(ctx)
	if err != nil {
		return fmt.Errorf("open mail %s for its notification: %w", job.ID, err)
	}
	defer original.Close()
	content := io.Reader(original)
	if d.isNotice {
		var isAutomatic bool
		if content, isAutomatic, err = peekAutomatic(original); err != nil {
			return fmt.Errorf("read mail %s for its notification: %w", job.ID, err)
		}
		if isAutomatic {
			reports = slices.DeleteFunc(reports, func(r bounce.Recipient) bool { return r.Action == bounce.Delayed })
			d.reports = reports
		}
	}
	if len(reports) == 0 {
		return nil
	}
	n, err := w.notification(job, to, reports, content, m.Size(), now)
	if err != nil {
		return err
	}
	d.Notify = append(d.Notify, n)
	return nil
}

// notification writes one. original may be nil. What became of a message that wants TLS all the way says as much about it as the message
// does, so it wants it too (RFC 8689 §5).
func (w *Worker) notification(job queue.Job, to address.Path, reports []bounce.Recipient, original io.Reader, size int64, now time.Time) (queue.Notification, error) {
	key := notificationKey(reports)
	sum := sha256.Sum256([]byte(key))
	payload, err := bounce.Report{
		ID:         string(job.ID),
		UniqueID:   fmt.Sprintf("%s.%d.%s", job.ID, job.Part, hex.EncodeToString(sum[:6])),
		Hostname:   w.o.Hostname,
		Domain:     w.o.Domain,
		To:         to,
		IsDouble:   job.ReversePath.IsNull(),
		Date:       now,
		Arrival:    job.Accepted,
		DeliverBy:  job.Deadline.At,
		ENVID:      job.ENVID,
		Recipients: reports,
		ReturnFull: job.RET != "HDRS" && !job.Flags.RequireTLS, // RFC 3461 §4.3 leaves it to us when nothing was said; RFC 8689 §5 does not
		SMTPUTF8:   job.Flags.SMTPUTF8,
		Original:   original,
		Size:       size,
	}.Write()
	if err != nil {
		return queue.Notification{}, fmt.Errorf("write notification for %s: %w", job.ID, err)
	}
	return queue.Notification{
		Key: key,
		Envelope: queue.Envelope{
			Recipients: []queue.Recipient{{Path: to, Notify: []string{"NEVER"}}},
			Flags:      queue.Flags{SMTPUTF8: to.NeedsSMTPUTF8(), RequireTLS: job.Flags.RequireTLS},
			Client:     job.Client,
			Class:      job.Class,
			HeaderFrom: w.o.Domain,
			Accepted:   now,
			Maker:      job.ID,
		},
		Payload: payload,
	}, nil
}

// notificationKey names what a notification says, whenever it is said: the actions, each with its recipients in order.
func notificationKey(reports []bounce.Recipient) string {
	keys := make([]string, 0, len(reports))
	for _, r := range reports {
		keys = append(keys, string(r.Action)+" "+r.Path.String())
	}
	slices.Sort(keys)
	return strings.Join(slices.Compact(keys), "\n")
}

// maxPeek bounds the part of a header that is searched for signs of automatic mail.
const maxPeek = 32 << 10

// peekAutomatic looks at the header and gives the message back whole.
func peekAutomatic(r io.Reader) (io.Reader, bool, error) {
	head := make([]byte, maxPeek)
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, false, err
	}
	head = head[:n]
	isAutomatic := bounce.IsAutomatic(bounce.Header(head, maxPeek))
	return io.MultiReader(strings.NewReader(string(head)), r), isAutomatic, nil
}
